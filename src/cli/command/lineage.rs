use std::{collections::BTreeSet, fmt, path::Path};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, command::transfer::with_trees},
    error::Result,
    git::Rev,
    lineage::{self, Lineage, Node, Origin},
    model::registry::{self, Number},
    path::{RepoPath, show},
    pipeline::LOCKFILE,
    repo::Repo,
    workspace::Workspace,
};

/// Show where an output, a model or a file came from
///
/// The chain of stage, command, parameters, inputs and commit, read from Git. A registered version such as
/// `pets@v0.1.0` names the package it holds; `models/pets.onnx` is short for `models/pets/model.onnx`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx lineage models/pets\n  mlx lineage pets@v0.1.0 --dot | dot -Tsvg > lineage.svg\n\n\
JSON: {\"path\", \"digest\", \"size\", \"files\", \"commit\": {\"rev\", \"author\", \"when\", \"summary\"} | null,\n\
  \"stage\": {\"name\", \"command\", \"params\", \"edited\"} | null, \"inputs\": [the same, nested…]}"
)]
pub struct Args {
    /// A path, or a registered version
    what: String,
    /// As this version has it; the workspace without
    #[arg(long)]
    rev: Option<String>,
    /// Print a graph for Graphviz
    #[arg(long)]
    dot: bool,
}

pub struct Chain {
    lineage: Lineage,
    dot: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Chain> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let (rev, path) = subject(ctx, &repo, args)?;
    let read = |file: &RepoPath| repo.files.read_if_there(file);
    let mut tracked = repo.git.tracked(&lineage::speaks)?;
    tracked.extend(workspace.pointed()?.iter().map(|it| it.with_suffix(crate::pointer::SUFFIX)));
    tracked
        .extend(ctx.pipelines(&workspace)?.iter().filter_map(|it| it.folder.join(LOCKFILE.as_bytes()).ok()));
    tracked.sort();
    tracked.dedup();
    let trace = |path: &RepoPath| lineage::trace(&repo.git, &repo.store, rev.as_ref(), path, &read, &tracked);
    let lineage = with_trees(ctx, &workspace, || {
        trace(&path).or_else(|error| short_for_package(&path).and_then(|it| trace(&it).ok()).ok_or(error))
    })?;
    Ok(Chain { lineage, dot: args.dot })
}

/// `models/pets.onnx` stands for `models/pets/model.onnx`.
fn short_for_package(path: &RepoPath) -> Option<RepoPath> {
    path.without_suffix(".onnx")?.join(b"model.onnx").ok()
}

fn subject(ctx: &Context<'_>, repo: &Repo, args: &Args) -> Result<(Option<Rev>, RepoPath)> {
    if let Some((model, number)) = args.what.split_once('@')
        && number.parse::<Number>().is_ok()
        && let Some(version) = registry::find(&repo.git, &args.what)?
    {
        debug_assert_eq!(model, version.model);
        return Ok((Some(version.tag.rev), version.path));
    }
    let rev = args.rev.as_deref().map(|it| repo.git.resolve(it)).transpose()?;
    Ok((rev, ctx.path(repo, Path::new(&args.what))?))
}

fn node(node: &Node) -> Value {
    let stage = match &node.origin {
        Origin::Stage { name, command, params, edited } => {
            json!({"name": name, "command": command, "params": params, "edited": edited})
        }
        Origin::Added | Origin::Plain => Value::Null,
    };
    let commit = node.commit.as_ref().map(|it| {
        json!({"rev": it.rev.to_string(), "author": it.author, "when": it.when.to_text(), "summary": it.summary})
    });
    json!({"path": node.path, "digest": node.content.digest, "size": node.content.size, "files": node.content.files,
        "commit": commit, "stage": stage, "inputs": node.inputs.iter().map(self::node).collect::<Vec<_>>()})
}

impl Report for Chain {
    fn json(&self) -> Value {
        node(&self.lineage.root)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dot {
            return dot(f, &self.lineage.root);
        }
        let mut told = BTreeSet::new();
        tree(f, &self.lineage.root, "", "", &mut told)
    }
}

/// One thing, and below it what it was made from; what was told once is not told again.
fn tree(
    f: &mut fmt::Formatter<'_>,
    it: &Node,
    first: &str,
    rest: &str,
    told: &mut BTreeSet<(RepoPath, String)>,
) -> fmt::Result {
    writeln!(f, "{first}{}  {}  {}", it.path, it.content.digest.short(), commit(it))?;
    let again = !told.insert((it.path.clone(), it.content.digest.hex()));
    if let Origin::Stage { name, command, params, edited } = &it.origin {
        if again {
            return writeln!(f, "{rest}  (as above)");
        }
        let edited = if *edited { ", then edited by hand" } else { "" };
        writeln!(f, "{rest}  made by stage {name}{edited}: {}", command.replace('\n', "; "))?;
        for (key, value) in params {
            writeln!(f, "{rest}  with {key} = {}", crate::document::canonical(value))?;
        }
    }
    for (at, input) in it.inputs.iter().enumerate() {
        let last = at + 1 == it.inputs.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        tree(f, input, &format!("{rest}{branch}"), &format!("{rest}{below}"), told)?;
    }
    Ok(())
}

fn commit(it: &Node) -> String {
    match &it.commit {
        Some(commit) => {
            format!("{} {} {}", commit.rev.short(), commit.when.day(), show(commit.summary.as_bytes()))
        }
        None => "not committed".to_owned(),
    }
}

fn dot(f: &mut fmt::Formatter<'_>, root: &Node) -> fmt::Result {
    writeln!(f, "digraph lineage {{\n  rankdir = LR;\n  node [shape = box, fontname = \"sans-serif\"];")?;
    let mut lines = Vec::new();
    edges(root, &mut lines);
    lines.sort();
    lines.dedup();
    lines.iter().try_for_each(|it| writeln!(f, "  {it}"))?;
    f.write_str("}")
}

fn edges(it: &Node, lines: &mut Vec<String>) {
    let quote = |text: &str| Value::from(text).to_string();
    let id = |it: &Node| quote(&format!("{} {}", it.path, it.content.digest.short()));
    lines.push(format!(
        "{} [label = {}];",
        id(it),
        quote(&format!("{}\n{}\n{}", it.path, it.content.digest.short(), commit(it)))
    ));
    if let Origin::Stage { name, .. } = &it.origin {
        let stage = quote(&format!("stage {name} {}", it.content.digest.short()));
        lines.push(format!("{stage} [label = {}, shape = ellipse];", quote(name)));
        lines.push(format!("{stage} -> {};", id(it)));
        it.inputs.iter().for_each(|input| lines.push(format!("{} -> {stage};", id(input))));
    }
    it.inputs.iter().for_each(|it| edges(it, lines));
}
