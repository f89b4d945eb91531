//! `mlx retrain`: the pipeline once more, on what it was trained on and on what production has taught since. It runs
//! in a worktree of its own, so that nobody's files are touched; what comes out is a candidate, compared with the
//! version that serves, and released only by a person.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{reference, release::served_model, version::bring},
        report::{count, table},
    },
    error::{Doing, Error, Kind, Result},
    fs::{self, Root, Sync},
    ledger::{self, Draft},
    model::{
        offline::Offline,
        registry::{self, Version},
        split::{self, Picture, Segment},
    },
    monitor::statistics::mcnemar_exact,
    path::RepoPath,
    release,
    repo::Repo,
    traffic,
    workspace::Workspace,
};

/// Train a candidate on the training data plus labeled traffic, and compare it with production
///
/// Everything that is committed at HEAD counts: pictures of sealed days whose labels `mlx feedback` brought join the
/// data, the pipeline runs in a worktree of its own, and the new package is registered as the next version. It is
/// compared with the version that serves on the same test pictures. Nothing is released.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx retrain --env production\n\n\
JSON: {\"candidate\", \"production\", \"added\", \"commit\", \"compared\": [{\"pictures\": \"test\" | \"traffic\", \"count\", \"candidate\", \"production\", \"p\"}]}")]
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

/// Both versions on the same pictures.
#[derive(Clone, Debug)]
struct Compared {
    pictures: &'static str,
    count: u64,
    /// Accuracy of each.
    candidate: f64,
    production: f64,
    /// That the difference is chance, by the exact test of `McNemar`.
    p: Option<f64>,
}

pub struct Outcome {
    candidate: String,
    production: String,
    added: u64,
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
    let added = tree.bring_traffic(environment, &asked.data)?;
    if added.is_empty() {
        return Err(Error::not_found(format!("no labeled pictures of `{environment}` are committed"))
            .hint("`mlx traffic seal`, `mlx feedback FILE`, then `git add traffic` and `git commit`"));
    }
    let commit = tree.train(&asked.data, added.len() as u64, environment)?;
    let candidate = tree.register(&model)?;
    let compared = tree.compare(&candidate, &production, &added)?;
    record(repo, asked, &candidate, &production, &compared)?;
    Ok(Outcome {
        candidate: candidate.name(),
        production: production.name(),
        added: added.len() as u64,
        commit,
        compared,
    })
}

impl Outcome {
    pub fn candidate(&self) -> &str {
        &self.candidate
    }
}

/// A linked worktree of HEAD, gone when dropped.
struct Tree<'c> {
    ctx: &'c Context<'c>,
    repo: Repo,
    origin: PathBuf,
    place: PathBuf,
}

impl<'c> Tree<'c> {
    fn make(ctx: &'c Context<'c>, repo: &Repo) -> Result<Self> {
        let place = repo.shared.path().join(format!("retrain-{}", std::process::id()));
        let origin = repo.root().to_owned();
        git(&origin, &["worktree", "prune"])?;
        let text = place.display().to_string();
        git(&origin, &["worktree", "add", "--quiet", "--detach", &text, "HEAD"])?;
        let repo = Repo::discover(&place)?;
        Ok(Self { ctx, repo, origin, place })
    }

    /// Puts labeled pictures of production into the data; their names and labels.
    fn bring_traffic(&self, environment: &str, data: &RepoPath) -> Result<Vec<(RepoPath, String)>> {
        self.mlx(&["checkout", "--quiet", &data.to_text()])?;
        let workspace = Workspace::open(&self.repo)?;
        let mut found = Vec::new();
        for day in traffic::sealed_days(&self.repo.files, environment)? {
            let labels = traffic::labels(&self.repo.files, environment, day)?;
            if labels.is_empty() {
                continue;
            }
            let sealed = reference::day(self.ctx, &workspace, environment, day)?;
            for record in sealed.records.iter().filter(|it| it.kept) {
                let Some(class) = labels.of(record) else { continue };
                let Some(bytes) = traffic::picture(&self.repo, environment, record)? else { continue };
                let ending = if bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" };
                let name = format!("traffic-{}.{ending}", record.input.hex());
                let path = data.join(class.as_bytes())?.join(name.as_bytes())?;
                self.repo.files.write(&path, &bytes, Sync::Later)?;
                found.push((path, class.clone()));
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Runs the pipeline and commits what came out; the commit.
    fn train(&self, data: &RepoPath, added: u64, environment: &str) -> Result<String> {
        self.mlx(&["add", "--quiet", &data.to_text()])?;
        self.mlx(&["repro", "--quiet"])?;
        git(&self.place, &["add", "--all"])?;
        let message = format!("retrain: {} of {environment} join {data}", count(added, "labeled picture"));
        git(&self.place, &["commit", "--quiet", "-m", &message])?;
        Ok(git(&self.place, &["rev-parse", "HEAD"])?.trim().to_owned())
    }

    fn register(&self, model: &str) -> Result<Version> {
        self.mlx(&["model", "register", "--quiet", model])?;
        registry::require(&self.repo.git, model)
    }

    /// Both versions on the candidate's test side; which side a picture is on follows from its digest, so neither
    /// was trained on any of it.
    fn compare(
        &self,
        candidate: &Version,
        production: &Version,
        added: &[(RepoPath, String)],
    ) -> Result<Vec<Compared>> {
        let list = RepoPath::from_text("split.tsv")?;
        let pictures = split::parse(&list, &self.repo.files.read(&list)?)?;
        let tested: Vec<&Picture> = pictures.iter().filter(|it| it.segment == Segment::Test).collect();
        let files = tested.iter().map(|it| self.repo.files.read(&it.path)).collect::<Result<Vec<_>>>()?;
        let right = |version: &Version| -> Result<Vec<bool>> {
            let mut offline = Offline::load(&self.repo, version)?;
            let classes = offline.description.classes.clone();
            let seen = offline.see(&files)?;
            let rows = seen.iter().zip(&tested);
            Ok(rows
                .map(|(seen, it)| seen.as_ref().is_ok_and(|seen| classes[seen.class] == it.class))
                .collect())
        };
        let (new, old) = (right(candidate)?, right(production)?);
        let from_traffic = |at: &usize| added.binary_search_by(|it| it.0.cmp(&tested[*at].path)).is_ok();
        let (traffic, test): (Vec<usize>, Vec<usize>) = (0..tested.len()).partition(from_traffic);
        Ok(vec![compared("test", &test, &new, &old), compared("traffic", &traffic, &new, &old)])
    }

    /// Runs this very mlx in the worktree.
    fn mlx(&self, args: &[&str]) -> Result<()> {
        let exe = std::env::current_exe().doing(|| "cannot find mlx itself".into())?;
        let output = Command::new(exe).args(args).current_dir(&self.place).output();
        let output = output.doing(|| "cannot run mlx".into())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        self.ctx.progress.warn(&said);
        Err(Error::new(
            Kind::Stage,
            format!("`mlx {}` failed in the worktree of the retraining", args.join(" ")),
        ))
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        let place = self.place.display().to_string();
        // What cannot be removed now is pruned by the next one.
        let _gone = git(&self.origin, &["worktree", "remove", "--force", &place]);
        if let Ok(root) = Root::open(self.repo.shared.path())
            && let Some(name) = self.place.file_name().and_then(|it| it.to_str())
            && let Ok(path) = RepoPath::from_text(name)
            && fs::is_dir(&self.place)
        {
            let _gone = root.remove(&path);
        }
    }
}

fn compared(pictures: &'static str, rows: &[usize], new: &[bool], old: &[bool]) -> Compared {
    let share = |list: &[bool]| rows.iter().filter(|it| list[**it]).count() as f64 / rows.len().max(1) as f64;
    let only = |a: &[bool], b: &[bool]| rows.iter().filter(|it| a[**it] && !b[**it]).count() as u64;
    Compared {
        pictures,
        count: rows.len() as u64,
        candidate: share(new),
        production: share(old),
        p: mcnemar_exact(only(new, old), only(old, new)),
    }
}

fn record(
    repo: &Repo,
    asked: &Asked<'_>,
    candidate: &Version,
    production: &Version,
    compared: &[Compared],
) -> Result<()> {
    let who = repo.git.whoami()?;
    let rows: Vec<Value> = compared.iter().map(row).collect();
    let published = ledger::publish(repo, &|_| {
        Ok(Draft {
            kind: ledger::Kind::Retrained,
            who: who.clone(),
            subject: candidate.name(),
            environment: Some(asked.environment.to_owned()),
            why: asked.why.map(str::to_owned),
            facts: [
                ("package".to_owned(), json!(candidate.package.digest)),
                ("production".to_owned(), json!(production.name())),
                ("compared".to_owned(), json!(rows)),
            ]
            .into(),
            tag: None,
        })
    });
    published.map(drop)
}

fn git(folder: &Path, args: &[&str]) -> Result<String> {
    let output =
        Command::new("git").arg("-C").arg(folder).args(args).output().doing(|| "cannot run `git`".into())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::new(Kind::Internal, format!("`git {}` failed: {said}", args.join(" "))))
}

fn row(it: &Compared) -> Value {
    json!({"pictures": it.pictures, "count": it.count, "candidate": it.candidate, "production": it.production, "p": it.p})
}

impl Report for Outcome {
    fn json(&self) -> Value {
        json!({"candidate": self.candidate, "production": self.production, "added": self.added, "commit": self.commit,
            "compared": self.compared.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pictures = count(self.added, "labeled picture");
        writeln!(f, "{} is a candidate: {pictures} joined, commit {}", self.candidate, &self.commit[..10])?;
        let row = |it: &Compared| {
            let p = it.p.map_or_else(|| "no difference".to_owned(), |it| format!("p = {it:.3}"));
            vec![
                it.pictures.to_owned(),
                it.count.to_string(),
                format!("{:.4}", it.candidate),
                format!("{:.4}", it.production),
                p,
            ]
        };
        let head = ["pictures", "count", &self.candidate, &self.production, "chance"];
        writeln!(f, "{}", table(&head, self.compared.iter().map(row).collect()))?;
        write!(
            f,
            "next: `mlx serve {0} --env test`, `mlx apptest`, `mlx approve {0}`; nothing is released yet",
            self.candidate
        )
    }
}
