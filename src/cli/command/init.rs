//! `mlx init`: sets up mlx in a Git repository, with an optional template. Also holds the templates, compiled
//! into the binary from `.mlops-template/`.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report},
    error::{Error, Result},
    fs::Sync,
    git::Git,
    path::RepoPath,
    repo::Repo,
};

/// Set up mlx in this Git repository
///
/// Creates `.mlx/config.toml`, which you commit to Git; cache, index, logs and local settings stay out of
/// Git. A template adds a working pipeline to the folder; existing files are never overwritten.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  git init pets && cd pets && mlx init\n  mlx init --template pets\n\n\
JSON: {\"root\": PATH, \"written\": [PATH…]}")]
pub struct Args {
    /// Template to copy into this folder: pets
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
}

/// Templates compiled into the binary: name, then path and text of each file. A test compares this list with
/// the folder.
pub const TEMPLATES: [(&str, &[(&str, &str)]); 1] = [(
    "pets",
    &[
        (
            ".github/workflows/mlx.yml",
            include_str!("../../../.mlops-template/pets/.github/workflows/mlx.yml"),
        ),
        (".mlx/policy.toml", include_str!("../../../.mlops-template/pets/.mlx/policy.toml")),
        ("README.md", include_str!("../../../.mlops-template/pets/README.md")),
        ("mlx.toml", include_str!("../../../.mlops-template/pets/mlx.toml")),
        ("params.toml", include_str!("../../../.mlops-template/pets/params.toml")),
    ],
)];

/// Report of `mlx init`.
pub struct Initialized {
    root: PathBuf,
    written: Vec<RepoPath>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Initialized> {
    let template = args.template.as_deref().map(find).transpose()?.unwrap_or_default();
    let git = Git::discover_checked(&ctx.cwd)?;
    let folder = RepoPath::parse(".".as_ref(), &ctx.cwd, git.root())?;
    let repo = Repo::init(&ctx.cwd)?;
    let mut written = Vec::new();
    for (name, text) in template {
        if let Some(inner) = name.strip_prefix(".mlx/") {
            let (root, path) = (repo.folder()?, RepoPath::from_text(inner)?);
            if root.stat(&path)?.is_none() && git.staged_own(".mlx", inner)?.is_none() {
                root.write(&path, text.as_bytes(), Sync::Now)?;
            }
            continue;
        }
        let path = folder.join_path(&RepoPath::from_text(name)?)?;
        if repo.files.stat(&path)?.is_none() && git.tracked_within(&path)?.is_none() {
            repo.files.write(&path, text.as_bytes(), Sync::Now)?;
            written.push(path);
        }
    }
    Ok(Initialized { root: repo.root().to_owned(), written })
}

/// Returns the files of a template, as path and text.
fn find(name: &str) -> Result<&'static [(&'static str, &'static str)]> {
    let known = || TEMPLATES.map(|it| it.0).join(", ");
    let missing = || {
        Error::not_found(format!("template `{name}` not found")).hint(format!("known templates: {}", known()))
    };
    TEMPLATES.iter().find(|it| it.0 == name).map(|it| it.1).ok_or_else(missing)
}

impl Report for Initialized {
    fn json(&self) -> Value {
        json!({"root": self.root.display().to_string(), "written": self.written})
    }
}

impl fmt::Display for Initialized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "initialized mlx in {}", self.root.display())?;
        self.written.iter().try_for_each(|it| writeln!(f, "wrote {it}"))?;
        f.write_str("next: `mlx add FOLDER`, then `git add .mlx FOLDER.mlx .gitignore`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_every_file_of_every_template() {
        for (name, files) in TEMPLATES {
            let root = format!("{}/.mlops-template/{name}", env!("CARGO_MANIFEST_DIR"));
            let entries = walkdir::WalkDir::new(&root).sort_by_file_name().into_iter().map(|it| it.unwrap());
            let mut on_disk: Vec<String> = entries
                .filter(|entry| entry.file_type().is_file())
                .map(|entry| entry.path().strip_prefix(&root).unwrap().display().to_string())
                .collect();
            on_disk.sort();
            assert_eq!(files.iter().map(|it| it.0).collect::<Vec<_>>(), on_disk);
        }
    }
}
