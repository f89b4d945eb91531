//! `mlx retrain`: runs the pipeline on the training data plus labeled traffic, registers the package as a
//! candidate and compares it with the version in production.
//!
//! The pipeline runs in a temporary worktree, so the caller's files stay untouched. Nothing is released: that
//! is a person's decision.

mod compare;
mod labeled_traffic;
mod worktree;

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            release::served_model,
            retrain::{compare::Comparison, worktree::Worktree},
            version::fetch_package,
        },
        context::BUILTINS,
        report::{count, table},
    },
    digest::Digest,
    error::{Error, Result},
    ledger::{self, Draft},
    model::registry,
    path::RepoPath,
    pipeline::Pipelines,
    release,
    repo::Repo,
    workspace::Workspace,
};

/// Train a candidate on the training data plus labeled traffic and compare it with production
///
/// Uses the state committed at HEAD: images of sealed days that were labeled with `mlx feedback` are added to
/// the data, the pipeline runs in a temporary worktree, and the new package is registered as the next
/// version. It is compared with the version in production on the same test images, without those that
/// production was trained on. If the pipeline gives a package that is registered already, that version is
/// compared. An image with a corrected label moves to its new class; one with conflicting labels is left out.
/// Nothing is released.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx retrain --env production\n\n\
JSON: {\"candidate\", \"new\": bool, \"production\", \"added\", \"left_out\", \"commit\", \"compared\": \
[{\"pictures\": \"test\" | \"traffic\", \"count\", \"candidate\", \"production\", \"p\"}]}")]
pub struct Args {
    /// Environment whose labeled traffic to train on
    #[arg(long)]
    env: String,
    /// Model to retrain; needed only if the environment has several
    model: Option<String>,
    /// Folder with the pipeline's training data
    #[arg(long, default_value = "data")]
    data: PathBuf,
    /// Reason to record
    #[arg(long)]
    why: Option<String>,
}

pub struct Outcome {
    candidate: String,
    /// True if the candidate was registered by this run.
    new: bool,
    production: String,
    added: u64,
    /// Number of test images left out because production was trained on them.
    left_out: u64,
    commit: String,
    compared: Vec<Comparison>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Outcome> {
    let repo = ctx.repo()?;
    ledger::refresh(&repo)?;
    let request = Request {
        environment: &args.env,
        model: args.model.as_deref(),
        data: ctx.path(&repo, &args.data)?,
        why: args.why.as_deref(),
    };
    retrain(ctx, &repo, &request)
}

/// Retraining to run.
pub struct Request<'a> {
    /// Environment whose labeled traffic to train on.
    pub environment: &'a str,
    /// Model to retrain; `None` for the only one of the environment.
    pub model: Option<&'a str>,
    /// Folder with the training data.
    pub data: RepoPath,
    /// Reason to record.
    pub why: Option<&'a str>,
}

/// Retrains a model, registers the candidate, compares it with production and records the result as a ledger
/// event.
pub fn retrain(ctx: &Context<'_>, repo: &Repo, request: &Request<'_>) -> Result<Outcome> {
    let environment = request.environment;
    let model = served_model(repo, request.model, environment)?;
    let all = release::releases(&repo.git, Some(&model), environment)?;
    let serving = release::active_releases(&all).last().map(|it| it.message.version.clone());
    let serving = serving.ok_or_else(|| Error::not_found(format!("no version serves in `{environment}`")))?;
    let production = registry::require(&repo.git, &serving)?;
    fetch_package(ctx, repo, &production, None)?;
    let worktree = Worktree::create(ctx, repo)?;
    let traffic = worktree.add_labeled_traffic(environment, &request.data)?;
    if traffic.is_empty() {
        return Err(Error::not_found(format!("no labeled images of `{environment}` are committed")).hint(
            "run `mlx traffic seal` and `mlx feedback FILE`, then `git add traffic` and `git commit`",
        ));
    }
    let added = traffic.len() as u64;
    let commit = worktree.train(&request.data, added, environment)?;
    // Fails on missing inputs before the candidate is registered.
    let test_set = compare::test_set(ctx, &worktree.repo, &production)?;
    let (candidate, new) = worktree.register(&model, &package_of(&worktree.repo, &model)?)?;
    let compared = compare::compare(&worktree.repo, &candidate, &production, &test_set, &traffic)?;
    let outcome = Outcome {
        candidate: candidate.name(),
        new,
        production: production.name(),
        added,
        left_out: test_set.left_out,
        commit,
        compared,
    };
    record(repo, request, &outcome, candidate.package.digest)?;
    Ok(outcome)
}

/// Returns the folder of a model's package.
fn package_of(repo: &Repo, model: &str) -> Result<RepoPath> {
    let workspace = Workspace::open(repo)?;
    let pipelines = Pipelines::open(&workspace, repo.root(), &BUILTINS)?;
    let missing = || {
        Error::not_found(format!("`mlx.toml` has no model `{model}`"))
            .hint(format!("add `[model.{model}]` with `path = \"FOLDER\"` to it"))
    };
    pipelines.nearest()?.manifest.models.get(model).cloned().ok_or_else(missing)
}

impl Outcome {
    /// Returns the name of the candidate, as in `pets@v0.2.0`.
    pub fn candidate(&self) -> &str {
        &self.candidate
    }

    /// Returns true if the candidate was registered by this run.
    pub fn is_new(&self) -> bool {
        self.new
    }
}

fn record(repo: &Repo, request: &Request<'_>, outcome: &Outcome, package: Digest) -> Result<()> {
    let who = repo.git.identity()?;
    let rows: Vec<Value> = outcome.compared.iter().map(Comparison::json).collect();
    let published = ledger::publish(repo, &|_| {
        Ok(Draft {
            kind: ledger::Kind::Retrained,
            who: who.clone(),
            subject: outcome.candidate.clone(),
            environment: Some(request.environment.to_owned()),
            why: request.why.map(str::to_owned),
            facts: [
                ("package".to_owned(), json!(package)),
                ("production".to_owned(), json!(outcome.production)),
                ("compared".to_owned(), json!(rows)),
                ("left_out".to_owned(), json!(outcome.left_out)),
            ]
            .into(),
            tag: None,
        })
    });
    published.map(drop)
}

impl Report for Outcome {
    fn json(&self) -> Value {
        json!({"candidate": self.candidate, "new": self.new, "production": self.production,
            "added": self.added,
            "left_out": self.left_out, "commit": self.commit,
            "compared": self.compared.iter().map(Comparison::json).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { candidate, production, .. } = self;
        let images = count(self.added, "labeled image");
        let word = if self.new {
            "is a new candidate"
        } else {
            "has exactly this package already, no new candidate"
        };
        writeln!(f, "{candidate} {word}: {images} added, commit {}", &self.commit[..10])?;
        let head = ["images", "count", candidate, production, "significance"];
        writeln!(f, "{}", table(&head, self.compared.iter().map(Comparison::cells).collect()))?;
        if self.left_out > 0 {
            let images = count(self.left_out, "test image");
            writeln!(f, "left out: {images} that {production} was trained on")?;
        }
        if !self.new && candidate == production {
            return write!(f, "it is in production already");
        }
        write!(
            f,
            "next: `mlx serve {candidate} --env test`, `mlx apptest`, `mlx approve {candidate}`; nothing \
            is released yet"
        )
    }
}
