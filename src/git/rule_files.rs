//! Files with rules of Git, which `gix` opens. A FIFO or a device in the place of one would block it for
//! ever, as it blocks Git.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    fs::{self, FileKind, Root},
    git::Git,
    path::RepoPath,
};

/// The files that hold one kind of rules.
pub struct RuleFiles {
    /// Name of those in the work tree.
    name: &'static str,
    /// Name of that of the repository, in its `info` folder.
    info: &'static str,
    /// Setting that names that of the user.
    setting: &'static str,
    /// Name of that of the user, in the `git` folder of the settings, if nothing is set.
    user: &'static str,
}

pub const IGNORE: RuleFiles =
    RuleFiles { name: ".gitignore", info: "exclude", setting: "core.excludesFile", user: "ignore" };
pub const ATTRIBUTES: RuleFiles = RuleFiles {
    name: ".gitattributes",
    info: "attributes",
    setting: "core.attributesFile",
    user: "attributes",
};

impl RuleFiles {
    /// Returns true unless a file that applies to one of these paths is a FIFO, a socket or a device.
    pub fn can_be_read<'p>(&self, git: &Git, paths: impl Iterator<Item = &'p RepoPath>) -> bool {
        let Ok(workspace) = Root::open(git.root()) else { return false };
        let folders: BTreeSet<_> = paths.filter_map(RepoPath::parent).collect();
        let folders: BTreeSet<_> = folders.iter().flat_map(RepoPath::ancestors).collect();
        let is_device = |folder: RepoPath| {
            let stat = folder.join(self.name.as_bytes()).and_then(|file| workspace.stat(&file));
            stat.is_ok_and(|stat| stat.is_some_and(|stat| stat.kind == FileKind::Other))
        };
        !folders.into_iter().any(is_device) && !self.outside(git).iter().any(|file| fs::may_block(file))
    }

    /// Returns the files that are not in the work tree.
    fn outside(&self, git: &Git) -> Vec<PathBuf> {
        let set = git.repo.config_snapshot().trusted_path(self.setting).ok().flatten();
        let var = |name| std::env::var_os(name).map(PathBuf::from);
        let settings = var("XDG_CONFIG_HOME").or_else(|| Some(var("HOME")?.join(".config")));
        let user = set.or_else(|| Some(settings?.join("git").join(self.user)));
        let own = [git.repo.git_dir(), git.repo.common_dir()].map(|dir| dir.join("info").join(self.info));
        own.into_iter().chain(user).collect()
    }
}
