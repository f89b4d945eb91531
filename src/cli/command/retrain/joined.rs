//! Which pictures of traffic join the data: a picture has one label, and the data follows when people correct it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    cli::command::{reference, retrain::tree::Tree},
    digest::Digest,
    error::Result,
    fs::Sync,
    model::split,
    path::RepoPath,
    traffic::{self, Record},
    workspace::Workspace,
};

/// So many pictures are named in a warning.
const NAMED: usize = 5;
const PREFIX: &[u8] = b"traffic-";

/// What the data lacks and has too much.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// Files of traffic under labels that no longer hold.
    remove: Vec<RepoPath>,
    /// Files of traffic that lie where they should.
    there: BTreeSet<RepoPath>,
    /// Pictures to write, with their labels.
    write: Vec<(Digest, String)>,
    /// Pictures labeled in several ways, with the labels.
    torn: Vec<(Digest, BTreeSet<String>)>,
}

impl Tree<'_> {
    /// Puts labeled pictures of production into the data and takes those out whose label changed; the files of
    /// traffic that count, and whether anything counts at all.
    pub fn bring_traffic(&self, environment: &str, data: &RepoPath) -> Result<BTreeSet<RepoPath>> {
        self.checkout(data)?;
        let workspace = Workspace::open(&self.repo)?;
        let asked = self.labeled(&workspace, environment)?;
        let present = match workspace.look(data, self.ctx.progress)? {
            Some(node) => split::gather(&node, data)?.pictures,
            None => Vec::new(),
        };
        let labels = asked.iter().map(|(digest, it)| (*digest, it.1.clone())).collect();
        let plan = plan(&present, &labels);
        warn(self, &plan.torn);
        plan.remove.iter().try_for_each(|it| self.repo.files.remove(it))?;
        let mut found = plan.there;
        for (digest, class) in plan.write {
            let Some(bytes) = traffic::picture(&self.repo, environment, &asked[&digest].0)? else { continue };
            let ending = if bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" };
            let path = place(data, &class, &format!("traffic-{}.{ending}", digest.hex()))?;
            self.repo.files.write(&path, &bytes, Sync::Later)?;
            found.insert(path);
        }
        Ok(found)
    }

    /// Pictures of traffic that are kept and labeled, with all their labels.
    fn labeled(
        &self,
        workspace: &Workspace<'_>,
        environment: &str,
    ) -> Result<BTreeMap<Digest, (Record, BTreeSet<String>)>> {
        let files = &self.repo.files;
        let mut days = BTreeMap::new();
        for day in traffic::sealed_days(files, environment)? {
            let labels = traffic::labels(files, environment, day)?;
            if !labels.is_empty() {
                days.insert(day, labels);
            }
        }
        let mut found: BTreeMap<Digest, (Record, BTreeSet<String>)> = BTreeMap::new();
        let (Some(first), Some(last)) = (days.keys().next(), days.keys().last()) else { return Ok(found) };
        for (day, sealed) in reference::span(self.ctx, workspace, environment, (*first, *last))? {
            let Some(labels) = days.get(&day) else { continue };
            for record in sealed.records.into_iter().filter(|it| it.kept) {
                let Some(class) = labels.of(&record).cloned() else { continue };
                found.entry(record.input).or_insert_with(|| (record, BTreeSet::new())).1.insert(class);
            }
        }
        Ok(found)
    }
}

/// Where a picture of a class lies. Classes are written as paths are, so that any folder can be one.
fn place(data: &RepoPath, class: &str, name: &str) -> Result<RepoPath> {
    data.join(RepoPath::from_text(class)?.bytes())?.join(name.as_bytes())
}

fn warn(tree: &Tree<'_>, torn: &[(Digest, BTreeSet<String>)]) {
    if torn.is_empty() {
        return;
    }
    let named = torn.iter().take(NAMED).map(|(digest, labels)| {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        format!("`{}` ({})", digest.short(), labels.join(", "))
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = torn.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    tree.ctx.progress.warn(&format!("labeled in several ways and left out: {named}{more}"));
}

/// Holds labels of traffic against the pictures in the data. A picture that was there before any traffic keeps its
/// label; traffic that says otherwise is as torn as traffic that contradicts itself.
fn plan(present: &[(RepoPath, Digest, String)], labels: &BTreeMap<Digest, BTreeSet<String>>) -> Plan {
    let mut lie: BTreeMap<Digest, Vec<&(RepoPath, Digest, String)>> = BTreeMap::new();
    for picture in present.iter().filter(|it| labels.contains_key(&it.1)) {
        lie.entry(picture.1).or_default().push(picture);
    }
    let mut plan = Plan::default();
    for (digest, told) in labels {
        let (ours, others): (Vec<_>, Vec<_>) = lie
            .remove(digest)
            .unwrap_or_default()
            .into_iter()
            .partition(|it| it.0.name().starts_with(&[PREFIX, digest.hex().as_bytes()].concat()));
        let mut all = told.clone();
        all.extend(others.iter().map(|it| it.2.clone()));
        let class = all.first().filter(|_| all.len() == 1);
        let (right, wrong): (Vec<_>, Vec<_>) = ours.into_iter().partition(|it| Some(&it.2) == class);
        plan.remove.extend(wrong.into_iter().map(|it| it.0.clone()));
        match class {
            None => plan.torn.push((*digest, all)),
            Some(class) if right.is_empty() && others.is_empty() => {
                plan.write.push((*digest, class.clone()));
            }
            Some(_) => plan.there.extend(right.into_iter().map(|it| it.0.clone())),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::of(b"picture")
    }

    fn lies(class: &str, name: &str) -> (RepoPath, Digest, String) {
        let data = RepoPath::from_text("data").unwrap();
        (place(&data, class, name).unwrap(), digest(), class.to_owned())
    }

    fn ours() -> String {
        format!("traffic-{}.jpg", digest().hex())
    }

    fn planned(present: &[(RepoPath, Digest, String)], told: &[&str]) -> Plan {
        let told = told.iter().map(|it| (*it).to_owned()).collect();
        plan(present, &[(digest(), told)].into())
    }

    #[test]
    fn a_corrected_label_takes_the_picture_out_of_its_old_class() {
        let found = planned(&[lies("cat", &ours())], &["dog"]);
        assert_eq!(
            (found.remove, found.write),
            (vec![lies("cat", &ours()).0], vec![(digest(), "dog".into())])
        );
    }

    #[test]
    fn what_lies_where_it_should_stays() {
        let found = planned(&[lies("cat", &ours())], &["cat"]);
        assert_eq!(found, Plan { there: [lies("cat", &ours()).0].into(), ..Plan::default() });
    }

    #[test]
    fn two_labels_for_one_picture_leave_it_out() {
        let found = planned(&[lies("cat", &ours())], &["cat", "dog"]);
        let torn = vec![(digest(), ["cat".to_owned(), "dog".to_owned()].into())];
        assert_eq!(found, Plan { remove: vec![lies("cat", &ours()).0], torn, ..Plan::default() });
    }

    #[test]
    fn traffic_does_not_overrule_or_repeat_a_training_picture() {
        let found = planned(&[lies("cat", "0001.jpg"), lies("dog", &ours())], &["dog"]);
        assert_eq!((found.torn.len(), found.write.len(), found.remove), (1, 0, vec![lies("dog", &ours()).0]));
        assert_eq!(planned(&[lies("cat", "0001.jpg")], &["cat"]), Plan::default());
    }

    #[test]
    fn a_class_is_the_folder_it_came_from() {
        let data = RepoPath::from_text("data").unwrap();
        let folder = data.join(b"50%").unwrap();
        let class = crate::path::show(folder.name());
        assert_eq!(place(&data, &class, "x.jpg").unwrap(), folder.join(b"x.jpg").unwrap());
        assert!(place(&data, "a/b", "x.jpg").is_err());
    }
}
