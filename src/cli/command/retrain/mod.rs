//! `mlx retrain`: the pipeline once more, on what it was trained on and on what production has taught since. It runs
//! in a worktree of its own, so that nobody's files are touched; what comes out is a candidate, compared with the
//! version that serves, and released only by a person.

mod compare;
mod joined;
mod tree;

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            release::served_model,
            retrain::{compare::Compared, tree::Tree},
            version::bring,
        },
        context::BUILTINS,
        report::{count, table},
    },
    digest::Digest,
    error::{Error, Result},
    ledger::{self, Draft},
    model::registry,
    path::RepoPath,
    pipeline::Pipeline,
    release,
    repo::Repo,
    workspace::Workspace,
};

/// Train a candidate on the training data plus labeled traffic, and compare it with production
///
/// Everything that is committed at HEAD counts: pictures of sealed days whose labels `mlx feedback` brought join the
/// data, the pipeline runs in a worktree of its own, and the new package is registered as the next version. It is
/// compared with the version that serves on the same test pictures, without those that one was trained on. Where
/// the same package comes out again, the version that has it is compared. A picture that was labeled anew moves to
/// its new class; one with several labels is left out. Nothing is released.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx retrain --env production\n\n\
JSON: {\"candidate\", \"new\": bool, \"production\", \"added\", \"left_out\", \"commit\", \"compared\": [{\"pictures\": \"test\" | \"traffic\", \"count\", \"candidate\", \"production\", \"p\"}]}")]
pub struct Args {
    /// Where the traffic comes from
    #[arg(long)]
    env: String,
    /// The model, where the environment has several
    model: Option<String>,
    /// The folder that the pipeline learns from
    #[arg(long, default_value = "data")]
    data: PathBuf,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

pub struct Outcome {
    candidate: String,
    /// Whether it was registered now.
    new: bool,
    production: String,
    added: u64,
    /// Test pictures that production was trained on.
    left_out: u64,
    commit: String,
    compared: Vec<Compared>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Outcome> {
    let repo = ctx.repo()?;
    ledger::refresh(&repo)?;
    let asked = Asked {
        environment: &args.env,
        model: args.model.as_deref(),
        data: ctx.path(&repo, &args.data)?,
        why: args.why.as_deref(),
    };
    retrain(ctx, &repo, &asked)
}

/// What to retrain on.
pub struct Asked<'a> {
    pub environment: &'a str,
    pub model: Option<&'a str>,
    pub data: RepoPath,
    pub why: Option<&'a str>,
}

pub fn retrain(ctx: &Context<'_>, repo: &Repo, asked: &Asked<'_>) -> Result<Outcome> {
    let environment = asked.environment;
    let model = served_model(repo, asked.model, environment)?;
    let all = release::releases(&repo.git, Some(&model), environment)?;
    let serving = release::serving(&all).last().map(|it| it.message.version.clone());
    let serving = serving.ok_or_else(|| Error::not_found(format!("nothing serves in `{environment}`")))?;
    let production = registry::require(&repo.git, &serving)?;
    bring(ctx, repo, &production, None)?;
    let tree = Tree::make(ctx, repo)?;
    let traffic = tree.bring_traffic(environment, &asked.data)?;
    if traffic.is_empty() {
        return Err(Error::not_found(format!("no labeled pictures of `{environment}` are committed"))
            .hint("`mlx traffic seal`, `mlx feedback FILE`, then `git add traffic` and `git commit`"));
    }
    let added = traffic.len() as u64;
    let commit = tree.train(&asked.data, added, environment)?;
    // Whatever can be missing is looked for before anything gets a name.
    let tested = compare::tested(ctx, &tree.repo, &production)?;
    let (candidate, new) = tree.register(&model, &package_of(&tree.repo, &model)?)?;
    let compared = compare::compare(&tree.repo, &candidate, &production, &tested, &traffic)?;
    let outcome = Outcome {
        candidate: candidate.name(),
        new,
        production: production.name(),
        added,
        left_out: tested.left_out,
        commit,
        compared,
    };
    record(repo, asked, &outcome, candidate.package.digest)?;
    Ok(outcome)
}

/// The folder of a model's package.
fn package_of(tree: &Repo, model: &str) -> Result<RepoPath> {
    let workspace = Workspace::open(tree)?;
    let pipeline = Pipeline::require(&workspace, tree.root(), &BUILTINS)?;
    let missing = || {
        Error::not_found(format!("mlx.toml has no model `{model}`"))
            .hint(format!("add [model.{model}] with path = \"FOLDER\" to it"))
    };
    pipeline.manifest.models.get(model).cloned().ok_or_else(missing)
}

impl Outcome {
    pub fn candidate(&self) -> &str {
        &self.candidate
    }

    pub fn is_new(&self) -> bool {
        self.new
    }
}

fn record(repo: &Repo, asked: &Asked<'_>, outcome: &Outcome, package: Digest) -> Result<()> {
    let who = repo.git.whoami()?;
    let rows: Vec<Value> = outcome.compared.iter().map(Compared::json).collect();
    let published = ledger::publish(repo, &|_| {
        Ok(Draft {
            kind: ledger::Kind::Retrained,
            who: who.clone(),
            subject: outcome.candidate.clone(),
            environment: Some(asked.environment.to_owned()),
            why: asked.why.map(str::to_owned),
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
        json!({"candidate": self.candidate, "new": self.new, "production": self.production, "added": self.added,
            "left_out": self.left_out, "commit": self.commit,
            "compared": self.compared.iter().map(Compared::json).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { candidate, production, .. } = self;
        let pictures = count(self.added, "labeled picture");
        let word = if self.new { "is a candidate" } else { "came out again, no new candidate" };
        writeln!(f, "{candidate} {word}: {pictures} joined, commit {}", &self.commit[..10])?;
        let head = ["pictures", "count", candidate, production, "chance"];
        writeln!(f, "{}", table(&head, self.compared.iter().map(Compared::cells).collect()))?;
        if self.left_out > 0 {
            let left_out = count(self.left_out, "test picture");
            writeln!(f, "{left_out} that {production} was trained on left out")?;
        }
        if !self.new && candidate == production {
            return write!(f, "it serves already");
        }
        write!(
            f,
            "next: `mlx serve {candidate} --env test`, `mlx apptest`, `mlx approve {candidate}`; nothing is released yet"
        )
    }
}
