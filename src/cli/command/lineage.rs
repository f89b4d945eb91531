use std::{collections::BTreeSet, fmt, path::Path};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            request::{self, Found},
            transfer::with_trees,
        },
    },
    error::Result,
    git::Rev,
    lineage::{self, Lineage, Node, Origin},
    model::registry::{self, Number},
    path::{RepoPath, show},
    pipeline::LOCKFILE,
    release::{self, Decision, Release},
    repo::Repo,
    time,
    workspace::Workspace,
};

/// Show where an output, a model, a file or an answer came from
///
/// The chain of stage, command, parameters, inputs and commit, read from Git. A registered version such as
/// `pets@v0.1.0` names the package it holds; `models/pets.onnx` is short for `models/pets/model.onnx`. The id of a
/// request goes from the answer to the version, who let it serve, and its package.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx lineage models/pets\n  mlx lineage pets@v0.1.0 --dot | dot -Tsvg > lineage.svg\n  mlx lineage 019a9c1e6b7c7e1d8f0a2b3c4d5e6f70\n\n\
JSON: {\"path\", \"digest\", \"size\", \"files\", \"commit\": {\"rev\", \"author\", \"when\", \"summary\"} | null,\n\
  \"stage\": {\"name\", \"command\", \"params\", \"edited\"} | null, \"inputs\": [the same, nested…]};\n\
  of a request also \"request\": {\"id\", \"environment\", \"captured\", \"received\", \"input\", \"class\", \"scores\", \"version\", \"package\", \"releases\": [{\"release\", \"who\", \"approvals\": [{\"tag\", \"who\", \"report\"}]}]}"
)]
pub struct Args {
    /// A path, a registered version, or the id of a request
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
    request: Option<Answered>,
}

/// An answer, and who let the version that gave it serve.
struct Answered {
    found: Found,
    releases: Vec<(Release, Vec<Decision>)>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Chain> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let request = request(ctx, &repo, &args.what)?;
    let what = request.as_ref().map_or(&args.what, |it| &it.found.record.version);
    let (rev, path) = subject(ctx, &repo, what, args.rev.as_deref())?;
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
    Ok(Chain { lineage, dot: args.dot, request })
}

/// `models/pets.onnx` stands for `models/pets/model.onnx`.
fn short_for_package(path: &RepoPath) -> Option<RepoPath> {
    path.without_suffix(".onnx")?.join(b"model.onnx").ok()
}

/// The request of this id, where no path is called so.
fn request(ctx: &Context<'_>, repo: &Repo, what: &str) -> Result<Option<Answered>> {
    let plain = !what.contains(['/', '@', '.']) && what.len() > 3;
    if !plain
        || ctx.path(repo, Path::new(what)).is_ok_and(|it| repo.files.stamp(&it).is_ok_and(|it| it.is_some()))
    {
        return Ok(None);
    }
    let Some(found) = request::find(repo, what)? else { return Ok(None) };
    let version = &found.record.version;
    let decided = release::decisions(&repo.git, Some(version))?;
    let own = release::all(&repo.git)?.into_iter();
    let own = own.filter(|it| it.environment == found.environment && it.message.version == *version);
    let with_approvals = |it: Release| {
        let named = |decision: &&Decision| it.message.approvals.contains(&decision.tag.name);
        let approvals = decided.iter().filter(named).cloned().collect();
        (it, approvals)
    };
    let releases = own.map(with_approvals).collect();
    Ok(Some(Answered { found, releases }))
}

fn subject(ctx: &Context<'_>, repo: &Repo, what: &str, rev: Option<&str>) -> Result<(Option<Rev>, RepoPath)> {
    if let Some((model, number)) = what.split_once('@')
        && number.parse::<Number>().is_ok()
        && let Some(version) = registry::find(&repo.git, what)?
    {
        debug_assert_eq!(model, version.model);
        return Ok((Some(version.tag.rev), version.path));
    }
    let rev = rev.map(|it| repo.git.resolve(it)).transpose()?;
    Ok((rev, ctx.path(repo, Path::new(what))?))
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
        let mut value = node(&self.lineage.root);
        if let Some(Answered { found: Found { environment, record: it }, releases }) = &self.request {
            let approval = |it: &Decision| json!({"tag": it.tag.name, "who": it.message.who, "report": it.message.report.map(|it| it.digest)});
            let releases = releases.iter().map(|(it, approvals)| {
                json!({"release": it.name(), "who": it.message.who, "approvals": approvals.iter().map(approval).collect::<Vec<_>>()})
            });
            value["request"] = json!({"id": it.id, "environment": environment, "captured": time::text_of_millis(it.captured),
                "received": time::text_of_millis(it.received), "input": it.input, "class": it.class, "scores": it.scores,
                "version": it.version, "package": it.package, "releases": releases.collect::<Vec<_>>()});
        }
        value
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dot {
            return dot(f, &self.lineage.root);
        }
        if let Some(Answered { found: Found { environment, record: it }, releases }) = &self.request {
            let said = if it.class.is_empty() { format!("status {}", it.status) } else { it.class.clone() };
            writeln!(f, "request {}  {said}  {} in {environment}", it.id, time::text_of_millis(it.captured))?;
            writeln!(f, "  of the picture {}", it.input)?;
            writeln!(f, "  answered by {}, package {}", it.version, it.package.short())?;
            for (release, approvals) in releases {
                writeln!(f, "  released as {} by {}", release.name(), show(release.message.who.as_bytes()))?;
                for it in approvals {
                    let report = it
                        .message
                        .report
                        .map(|it| format!(", report {}", it.digest.short()))
                        .unwrap_or_default();
                    writeln!(
                        f,
                        "  approved by {} ({}){report}",
                        show(it.message.who.as_bytes()),
                        it.tag.name
                    )?;
                }
            }
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
