//! `mlx lineage`: shows how a file, a model or an answer was produced, as text or as a graph.

use std::{collections::BTreeSet, fmt, path::Path};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            request::{self, FoundRequest},
            transfer::{wants_of_history, with_trees_of},
        },
    },
    error::{Error, Result},
    git::Rev,
    lineage::{self, Introduction, Lineage, Node, Origin},
    model::registry::{self, VersionNumber},
    path::{RepoPath, escape_bytes},
    pipeline::{LOCKFILE, NOT_RUN, read_record},
    release::{self, Decision, Release},
    remote::Wants,
    repo::Repo,
    time,
    workspace::{Workspace, is_tracking_file},
};

/// Show how an output, a model, a file or an answer was produced
///
/// Shows the chain of stages, commands, parameters, inputs and commits, read from Git. A registered version
/// such as `pets@v0.1.0` stands for its package, and `models/pets.onnx` for `models/pets/model.onnx`. The id
/// of a request leads from the answer to the version, who released it, and its package.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx lineage models/pets\n  mlx lineage pets@v0.1.0 --dot | dot -Tsvg > \
    lineage.svg\n  mlx lineage 019a9c1e6b7c7e1d8f0a2b3c4d5e6f70\n\n\
JSON: {\"path\", \"digest\", \"size\", \"files\", \"commit\": {\"rev\", \"author\", \"when\", \"summary\"} \
| null,\n\
  \"commit_unknown\": bool, \"stage\": {\"name\", \"command\", \"params\", \"edited\", \"not_run\"} | null,\n\
  \"inputs\": [the same, nested…], \"repeated\": bool}; a node that was shown before is repeated without \
its inputs;\n\
  of a request also \"request\": {\"id\", \"environment\", \"captured\", \"received\", \"input\", \
  \"class\", \"scores\", \"version\", \"package\", \"releases\": [{\"release\", \"who\", \"approvals\": \
  [{\"tag\", \"who\", \"report\"}]}]}"
)]
pub struct Args {
    /// Path, registered version, or id of a request
    what: String,
    /// Revision to read (default: the workspace)
    #[arg(long)]
    rev: Option<String>,
    /// Print the graph in Graphviz's DOT language
    #[arg(long)]
    dot: bool,
}

pub struct Output {
    lineage: Lineage,
    dot: bool,
    request: Option<RequestOrigin>,
    /// The error for what cannot be read and may tell more.
    failure: Option<Error>,
}

/// A request, with the releases and approvals of the version that answered it.
struct RequestOrigin {
    found: FoundRequest,
    releases: Vec<(Release, Vec<Decision>)>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Output> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let request = find_request(ctx, &repo, &args.what)?;
    let subject = request.as_ref().map_or(&args.what, |origin| &origin.found.record.version);
    let (rev, path) = resolve(ctx, &repo, subject, args.rev.as_deref())?;
    let read = |file: &RepoPath| read_record(&repo, file);
    let mut tracked = repo.git.tracked(&is_tracking_file)?;
    tracked.extend(workspace.pointer_paths()?.iter().map(|path| path.with_suffix(crate::pointer::SUFFIX)));
    let pipelines = ctx.pipelines(&workspace)?;
    tracked.extend(pipelines.folders().filter_map(|folder| folder.join(LOCKFILE.as_bytes()).ok()));
    tracked.sort();
    tracked.dedup();
    let trace = |path: &RepoPath| lineage::trace(&repo.git, &repo.store, rev.as_ref(), path, &read, &tracked);
    let find = || {
        trace(&path).or_else(|error| package_model(&path).and_then(|model| trace(&model).ok()).ok_or(error))
    };
    let start = rev.clone().or_else(|| repo.git.head());
    let more = || start.as_ref().map_or_else(|| Ok(Wants::default()), |start| wants_of_history(&repo, start));
    let complete = with_trees_of(ctx, &workspace, &more, || {
        let lineage = find()?;
        if lineage.unknown().is_some() { Err(Error::not_found("a tree")) } else { Ok(lineage) }
    });
    let mut lineage = complete.or_else(|_| find())?;
    if let Some(path) = lineage.unknown() {
        ctx.progress.warn(&format!(
            "the commit of `{path}` is unknown: trees of earlier commits are not here (get them with \
             `mlx fetch --trees --all-commits`, after `mlx push --all-commits` in a clone that has them)"
        ));
    }
    let failure = ctx.failure(std::mem::take(&mut lineage.problems));
    Ok(Output { lineage, dot: args.dot, request, failure })
}

/// Returns `models/pets/model.onnx` for `models/pets.onnx`.
fn package_model(path: &RepoPath) -> Option<RepoPath> {
    path.without_suffix(".onnx")?.join(b"model.onnx").ok()
}

/// Finds the request with this id, unless a path has that name.
fn find_request(ctx: &Context<'_>, repo: &Repo, id: &str) -> Result<Option<RequestOrigin>> {
    let may_be_id = !id.contains(['/', '@', '.']) && id.len() > 3;
    let exists = |path: RepoPath| repo.files.stat(&path).is_ok_and(|stat| stat.is_some());
    if !may_be_id || ctx.path(repo, Path::new(id)).is_ok_and(exists) {
        return Ok(None);
    }
    let Some(found) = request::find(repo, id)? else { return Ok(None) };
    let version = &found.record.version;
    let decisions = release::decisions(&repo.git, Some(version))?;
    let is_own =
        |release: &Release| release.environment == found.environment && release.message.version == *version;
    let with_approvals = |release: Release| {
        let is_named = |decision: &&Decision| release.message.approvals.contains(&decision.tag.name);
        let approvals = decisions.iter().filter(is_named).cloned().collect();
        (release, approvals)
    };
    let recorded = release::recorded_releases(&repo.git)?.into_iter();
    let releases = recorded.filter(is_own).map(with_approvals).collect();
    Ok(Some(RequestOrigin { found, releases }))
}

/// Resolves a version or a path to the path to trace and the revision to read (none for the workspace).
fn resolve(
    ctx: &Context<'_>,
    repo: &Repo,
    subject: &str,
    rev: Option<&str>,
) -> Result<(Option<Rev>, RepoPath)> {
    if let Some((model, number)) = subject.split_once('@')
        && number.parse::<VersionNumber>().is_ok()
        && let Some(version) = registry::find(&repo.git, subject)?
    {
        debug_assert_eq!(model, version.model);
        return Ok((Some(version.tag.rev), version.path));
    }
    let rev = rev.map(|rev| repo.git.resolve(rev)).transpose()?;
    Ok((rev, ctx.path(repo, Path::new(subject))?))
}

/// Returns a node and its inputs as JSON; those of a node in `shown` are left out.
fn node(lineage: &Lineage, at: usize, shown: &mut BTreeSet<usize>) -> Value {
    let (node, is_repeated) = (&lineage.nodes[at], !shown.insert(at));
    let inputs = if is_repeated { &[][..] } else { &node.inputs };
    let inputs: Vec<_> = inputs.iter().map(|input| self::node(lineage, *input, shown)).collect();
    let stage = match &node.origin {
        Origin::Stage { id, command, params, edited, not_run } => {
            json!({"name": id.to_string(), "command": command, "params": params, "edited": edited,
                "not_run": not_run})
        }
        Origin::Added | Origin::Plain => Value::Null,
    };
    let commit = match &node.introduction {
        Introduction::Commit(commit) => {
            json!({"rev": commit.rev.to_string(), "author": commit.author, "when": commit.when.to_text(),
                "summary": commit.summary})
        }
        Introduction::NotCommitted | Introduction::Unknown | Introduction::Unreadable => Value::Null,
    };
    let is_unknown = matches!(node.introduction, Introduction::Unknown | Introduction::Unreadable);
    json!({"path": node.path, "digest": node.content.digest, "size": node.content.size,
        "files": node.content.files,
        "commit": commit, "commit_unknown": is_unknown, "stage": stage,
        "inputs": inputs, "repeated": is_repeated})
}

impl Report for Output {
    fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    fn json(&self) -> Value {
        let mut value = node(&self.lineage, 0, &mut BTreeSet::new());
        if let Some(RequestOrigin { found: FoundRequest { environment, record }, releases }) = &self.request {
            let approval = |decision: &Decision| {
                let message = &decision.message;
                let report = message.report.map(|report| report.digest);
                json!({"tag": decision.tag.name, "who": message.who, "report": report})
            };
            let releases = releases.iter().map(|(release, approvals)| {
                let approvals: Vec<_> = approvals.iter().map(approval).collect();
                json!({"release": release.name(), "who": release.message.who, "approvals": approvals})
            });
            value["request"] = json!({"id": record.id, "environment": environment,
                "captured": time::format_millis(record.captured),
                "received": time::format_millis(record.received),
                "input": record.input, "class": record.class, "scores": record.scores,
                "version": record.version,
                "package": record.package, "releases": releases.collect::<Vec<_>>()});
        }
        value
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dot {
            return dot(f, &self.lineage);
        }
        if let Some(RequestOrigin { found: FoundRequest { environment, record }, releases }) = &self.request {
            let failed = record.class.is_empty();
            let answer = if failed { format!("status {}", record.status) } else { record.class.clone() };
            let captured = time::format_millis(record.captured);
            writeln!(f, "request {}  {answer}  {captured} in {environment}", record.id)?;
            writeln!(f, "  image {}", record.input)?;
            writeln!(f, "  answered by {}, package {}", record.version, record.package.short())?;
            for (release, approvals) in releases {
                writeln!(
                    f,
                    "  released as {} by {}",
                    release.name(),
                    escape_bytes(release.message.who.as_bytes())
                )?;
                for approval in approvals {
                    let message = &approval.message;
                    let report = message.report.map(|report| format!(", report {}", report.digest.short()));
                    let report = report.unwrap_or_default();
                    let who = escape_bytes(message.who.as_bytes());
                    writeln!(f, "  approved by {who} ({}){report}", approval.tag.name)?;
                }
            }
        }
        tree(f, &self.lineage, 0, ["", ""], &mut BTreeSet::new())
    }
}

/// Prints a node and, below it, its inputs; the stage of a node that was printed before is not repeated.
/// The first line begins with one text, the others with another.
fn tree(
    f: &mut fmt::Formatter<'_>,
    lineage: &Lineage,
    at: usize,
    [first, rest]: [&str; 2],
    printed: &mut BTreeSet<usize>,
) -> fmt::Result {
    let (node, is_repeated) = (&lineage.nodes[at], !printed.insert(at));
    writeln!(f, "{first}{}  {}  {}", node.path, node.content.digest.short(), commit(node))?;
    if let Origin::Stage { id, command, params, edited, not_run } = &node.origin {
        if is_repeated {
            return writeln!(f, "{rest}  (as above)");
        }
        let edited = if *edited { ", then edited by hand" } else { "" };
        let origin =
            if *not_run { format!("{NOT_RUN}: result of stage") } else { "made by stage".to_owned() };
        writeln!(f, "{rest}  {origin} {id}{edited}: {}", command.replace('\n', "; "))?;
        for (key, value) in params {
            writeln!(f, "{rest}  with {key} = {}", value.canonical())?;
        }
    }
    for (at, input) in node.inputs.iter().enumerate() {
        let last = at + 1 == node.inputs.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        tree(f, lineage, *input, [&format!("{rest}{branch}"), &format!("{rest}{below}")], printed)?;
    }
    Ok(())
}

/// Returns the commit of a node in one line.
fn commit(node: &Node) -> String {
    match &node.introduction {
        Introduction::Commit(commit) => {
            format!(
                "{} {} {}",
                commit.rev.short(),
                commit.when.day(),
                escape_bytes(commit.summary.as_bytes())
            )
        }
        Introduction::NotCommitted => "not committed".to_owned(),
        Introduction::Unknown | Introduction::Unreadable => "commit unknown".to_owned(),
    }
}

/// Prints the graph in Graphviz's DOT language.
fn dot(f: &mut fmt::Formatter<'_>, lineage: &Lineage) -> fmt::Result {
    writeln!(f, "digraph lineage {{\n  rankdir = LR;\n  node [shape = box, fontname = \"sans-serif\"];")?;
    let lines: BTreeSet<_> = lineage.nodes.iter().flat_map(|node| edges(lineage, node)).collect();
    lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
    f.write_str("}")
}

/// Returns the DOT lines of a node and of the edges to its inputs.
fn edges(lineage: &Lineage, node: &Node) -> Vec<String> {
    let quote = |text: &str| Value::from(text).to_string();
    let digest = node.content.digest.short();
    let id = |node: &Node| quote(&format!("{} {}", node.path, node.content.digest.short()));
    let label = quote(&format!("{}\n{digest}\n{}", node.path, commit(node)));
    let mut lines = vec![format!("{} [label = {label}];", id(node))];
    if let Origin::Stage { id: made_by, .. } = &node.origin {
        let stage = quote(&format!("stage {made_by} {digest}"));
        lines.push(format!("{stage} [label = {}, shape = ellipse];", quote(&made_by.to_string())));
        lines.push(format!("{stage} -> {};", id(node)));
        let inputs = node.inputs.iter().map(|input| &lineage.nodes[*input]);
        lines.extend(inputs.map(|input| format!("{} -> {stage};", id(input))));
    }
    lines
}
