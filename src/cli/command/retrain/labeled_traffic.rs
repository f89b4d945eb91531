//! Labeled traffic as training data: adds labeled images to the data folder, moves those whose label was
//! corrected, and leaves out images with conflicting labels.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    cli::command::{baseline, retrain::worktree::Worktree},
    digest::Digest,
    error::Result,
    fs::Sync,
    model::split,
    path::RepoPath,
    traffic::{self, Record},
    workspace::Workspace,
};

/// Largest number of images that a warning names.
const MAX_NAMED: usize = 5;
/// Start of the file names of images from traffic.
const PREFIX: &[u8] = b"traffic-";

/// Changes that bring the data folder in line with the labels of traffic.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// Files from traffic under an outdated label.
    remove: Vec<RepoPath>,
    /// Files from traffic that are under the right label already.
    present: BTreeSet<RepoPath>,
    /// Images to write, with their label.
    write: Vec<(Digest, String)>,
    /// Images with conflicting labels, which are left out.
    conflicting: Vec<(Digest, BTreeSet<String>)>,
}

impl Worktree<'_> {
    /// Writes labeled images of an environment into the data folder and removes those whose label has
    /// changed. Returns the files from traffic that are now under their right label; may be
    /// empty.
    pub fn add_labeled_traffic(&self, environment: &str, data: &RepoPath) -> Result<BTreeSet<RepoPath>> {
        self.checkout(data)?;
        let workspace = Workspace::open(&self.repo)?;
        let labeled = self.labeled(&workspace, environment)?;
        let present = match workspace.scan(data, self.ctx.progress)? {
            Some(node) => split::list_images(&node, data)?.images,
            None => Vec::new(),
        };
        let labels = labeled.iter().map(|(digest, (_, labels))| (*digest, labels.clone())).collect();
        let plan = plan(&present, &labels);
        warn_of_conflicts(self, &plan.conflicting);
        plan.remove.iter().try_for_each(|path| self.repo.files.remove(path))?;
        let mut files = plan.present;
        for (digest, class) in plan.write {
            let Some(bytes) = traffic::read_image(&self.repo, environment, &labeled[&digest].0)? else {
                continue;
            };
            let extension = if bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" };
            let path = image_path(data, &class, &format!("traffic-{}.{extension}", digest.hex()))?;
            self.repo.files.write(&path, &bytes, Sync::Later)?;
            files.insert(path);
        }
        Ok(files)
    }

    /// Returns the stored and labeled images of traffic by digest, each with one of its records and all
    /// labels.
    fn labeled(
        &self,
        workspace: &Workspace<'_>,
        environment: &str,
    ) -> Result<BTreeMap<Digest, (Record, BTreeSet<String>)>> {
        let files = &self.repo.files;
        let mut days = BTreeMap::new();
        for day in traffic::sealed_days(files, environment)? {
            let labels = traffic::read_labels(files, environment, day)?;
            if !labels.is_empty() {
                days.insert(day, labels);
            }
        }
        let mut found: BTreeMap<Digest, (Record, BTreeSet<String>)> = BTreeMap::new();
        let (Some(first), Some(last)) = (days.keys().next(), days.keys().last()) else { return Ok(found) };
        for (day, sealed) in baseline::sealed_span(self.ctx, workspace, environment, (*first, *last))? {
            let Some(labels) = days.get(&day) else { continue };
            for record in sealed.records.into_iter().filter(|record| record.kept) {
                let Some(class) = labels.get(&record).cloned() else { continue };
                found.entry(record.input).or_insert_with(|| (record, BTreeSet::new())).1.insert(class);
            }
        }
        Ok(found)
    }
}

/// Returns the path of an image of a class. Class names use the text form of paths, so that any folder can be
/// a class.
fn image_path(data: &RepoPath, class: &str, name: &str) -> Result<RepoPath> {
    data.join(RepoPath::from_text(class)?.bytes())?.join(name.as_bytes())
}

fn warn_of_conflicts(worktree: &Worktree<'_>, conflicting: &[(Digest, BTreeSet<String>)]) {
    if conflicting.is_empty() {
        return;
    }
    let named = conflicting.iter().take(MAX_NAMED).map(|(digest, labels)| {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        format!("`{}` ({})", digest.short(), labels.join(", "))
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = conflicting.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    worktree.ctx.progress.warn(&format!("images with conflicting labels are left out: {named}{more}"));
}

/// Compares the labels of traffic with the images in the data folder. An image of the original data keeps its
/// label; a different label from traffic is a conflict, as are different labels within traffic.
fn plan(present: &[(RepoPath, Digest, String)], labels: &BTreeMap<Digest, BTreeSet<String>>) -> Plan {
    let mut files: BTreeMap<Digest, Vec<&(RepoPath, Digest, String)>> = BTreeMap::new();
    for file in present.iter().filter(|(_, digest, _)| labels.contains_key(digest)) {
        files.entry(file.1).or_default().push(file);
    }
    let mut plan = Plan::default();
    for (digest, given) in labels {
        let (from_traffic, original): (Vec<_>, Vec<_>) = files
            .remove(digest)
            .unwrap_or_default()
            .into_iter()
            .partition(|(path, ..)| path.name().starts_with(&[PREFIX, digest.hex().as_bytes()].concat()));
        let mut all = given.clone();
        all.extend(original.iter().map(|(.., label)| label.clone()));
        let class = all.first().filter(|_| all.len() == 1);
        let (right, wrong): (Vec<_>, Vec<_>) =
            from_traffic.into_iter().partition(|(.., label)| Some(label) == class);
        plan.remove.extend(wrong.into_iter().map(|(path, ..)| path.clone()));
        match class {
            None => plan.conflicting.push((*digest, all)),
            Some(class) if right.is_empty() && original.is_empty() => {
                plan.write.push((*digest, class.clone()));
            }
            Some(_) => plan.present.extend(right.into_iter().map(|(path, ..)| path.clone())),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::of(b"image")
    }

    fn file(class: &str, name: &str) -> (RepoPath, Digest, String) {
        let data = RepoPath::from_text("data").unwrap();
        (image_path(&data, class, name).unwrap(), digest(), class.to_owned())
    }

    fn traffic_name() -> String {
        format!("traffic-{}.jpg", digest().hex())
    }

    fn planned(present: &[(RepoPath, Digest, String)], labels: &[&str]) -> Plan {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        plan(present, &[(digest(), labels)].into())
    }

    #[test]
    fn a_corrected_label_moves_the_image_to_its_new_class() {
        let found = planned(&[file("cat", &traffic_name())], &["dog"]);
        assert_eq!(
            (found.remove, found.write),
            (vec![file("cat", &traffic_name()).0], vec![(digest(), "dog".into())])
        );
    }

    #[test]
    fn an_image_under_the_right_label_stays() {
        let found = planned(&[file("cat", &traffic_name())], &["cat"]);
        assert_eq!(found, Plan { present: [file("cat", &traffic_name()).0].into(), ..Plan::default() });
    }

    #[test]
    fn an_image_with_two_labels_is_left_out() {
        let found = planned(&[file("cat", &traffic_name())], &["cat", "dog"]);
        let conflicting = vec![(digest(), ["cat".to_owned(), "dog".to_owned()].into())];
        assert_eq!(
            found,
            Plan { remove: vec![file("cat", &traffic_name()).0], conflicting, ..Plan::default() }
        );
    }

    #[test]
    fn traffic_does_not_override_or_duplicate_a_training_image() {
        let found = planned(&[file("cat", "0001.jpg"), file("dog", &traffic_name())], &["dog"]);
        assert_eq!(
            (found.conflicting.len(), found.write.len(), found.remove),
            (1, 0, vec![file("dog", &traffic_name()).0])
        );
        assert_eq!(planned(&[file("cat", "0001.jpg")], &["cat"]), Plan::default());
    }

    #[test]
    fn a_class_name_maps_back_to_its_folder() {
        let data = RepoPath::from_text("data").unwrap();
        let folder = data.join(b"50%").unwrap();
        let class = crate::path::escape_bytes(folder.name());
        assert_eq!(image_path(&data, &class, "x.jpg").unwrap(), folder.join(b"x.jpg").unwrap());
        assert!(image_path(&data, "a/b", "x.jpg").is_err());
    }
}
