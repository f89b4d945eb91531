//! Approvals and rejections of a version in an environment.

use crate::{
    error::Result,
    git::{Git, Tag},
    ledger,
    release::Message,
};

/// What somebody said of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Approved,
    Rejected,
}

/// One word of somebody.
#[derive(Clone, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    /// 1 for the first about this version there.
    pub number: u64,
    pub environment: String,
    pub message: Message,
    pub tag: Tag,
}

impl Verdict {
    /// The folder of its tags.
    fn folder(self) -> &'static str {
        match self {
            Self::Approved => "mlx/approve/",
            Self::Rejected => "mlx/reject/",
        }
    }

    /// The event that it is.
    pub fn kind(self) -> ledger::Kind {
        match self {
            Self::Approved => ledger::Kind::Approved,
            Self::Rejected => ledger::Kind::Rejected,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }

    /// `mlx/approve/pets@v0.1.0/production/1`
    pub fn tag_name(self, version: &str, environment: &str, number: u64) -> String {
        format!("{}{version}/{environment}/{number}", self.folder())
    }
}

/// All decisions that tags claim, of one version or of all, by number. Tags that are shaped so and say something
/// else are none. Which of them count is for [`crate::release::Record`] to say.
pub fn decisions(git: &Git, version: Option<&str>) -> Result<Vec<Decision>> {
    let mut found = Vec::new();
    for verdict in [Verdict::Approved, Verdict::Rejected] {
        let prefix =
            version.map_or_else(|| verdict.folder().to_owned(), |it| format!("{}{it}/", verdict.folder()));
        found.extend(git.tags(&prefix)?.into_iter().filter_map(|it| parse(verdict, it)));
    }
    found.sort_by(|a, b| {
        (&a.message.version, &a.environment, a.number).cmp(&(&b.message.version, &b.environment, b.number))
    });
    Ok(found)
}

fn parse(verdict: Verdict, tag: Tag) -> Option<Decision> {
    let message = Message::parse(&tag.message)?;
    let rest = tag.name.strip_prefix(verdict.folder())?;
    let (rest, number) = rest.rsplit_once('/')?;
    let (version, environment) = rest.rsplit_once('/')?;
    let number = number.parse().ok().filter(|it| *it > 0)?;
    // The name has to say what the message says, and has one spelling.
    let same = version == message.version && tag.name == verdict.tag_name(version, environment, number);
    let environment = environment.to_owned();
    same.then_some(Decision { verdict, number, environment, message, tag })
}
