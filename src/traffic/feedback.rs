//! Feedback: true labels of served images, by the id of a request or the digest of an image.
//!
//! Labels are stored with the day on which the image was captured, in a plain file for Git (`labels.tsv`):
//! one sorted line per request, with request id, digest and class, separated by tabs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{
    digest::Digest,
    document,
    error::{Error, Kind, Result},
    fs::{Root, Sync},
    path::RepoPath,
    repo::Repo,
    time::Day,
    traffic::{Record, paths, seal},
};

/// Largest number of culprits that an error names.
const MAX_NAMED: usize = 5;

/// Request or image to which a label belongs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Request(String),
    Image(Digest),
}

impl Subject {
    fn id(&self) -> Option<&str> {
        if let Self::Request(id) = self { Some(id) } else { None }
    }
}

/// True label: one line of a feedback file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrueLabel {
    pub subject: Subject,
    pub class: String,
}

/// Summary of recorded feedback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedbackSummary {
    /// Number of requests that had no label before.
    pub new: usize,
    /// Number of labels that were different before.
    pub changed: usize,
    /// Number of labels that were the same before.
    pub same: usize,
    /// Days whose labels were written.
    pub days: BTreeSet<Day>,
}

/// True classes of labeled requests. The key is request id and image digest, because clients choose ids and
/// may use one twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<(String, Digest), String>);

impl Labels {
    /// Returns the true class of a record, if it has been labeled.
    pub fn get(&self, record: &Record) -> Option<&String> {
        self.0.get(&(record.id.clone(), record.input))
    }

    /// Sets the true class of a record and returns the previous one.
    pub fn insert(&mut self, record: &Record, class: String) -> Option<String> {
        self.0.insert((record.id.clone(), record.input), class)
    }

    pub fn remove(&mut self, record: &Record) {
        self.0.remove(&(record.id.clone(), record.input));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Input line of a feedback file; other columns or keys are ignored.
#[derive(Deserialize)]
struct Row {
    id: Option<String>,
    digest: Option<String>,
    class: String,
}

/// Parses a feedback file: CSV with the header `id,class` or `digest,class`, or JSON lines with the same
/// keys. `name` is how errors call the file.
pub fn parse_labels(name: &str, bytes: &[u8]) -> Result<Vec<TrueLabel>> {
    let invalid = |line: u64, why: String| {
        let error = Error::corrupt(format!("line {line} of `{name}` is not a label: {why}"));
        error.hint(
            "write CSV with the header `id,class` or `digest,class`, or a JSON object per line with these \
            keys",
        )
    };
    let text = std::str::from_utf8(bytes).map_err(|_| invalid(1, "it is not UTF-8".into()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    if text.trim_start().starts_with('{') {
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let number = index as u64 + 1;
            let row = serde_json::from_str(line).map_err(|it| invalid(number, it.to_string()))?;
            found.push(true_label(row).map_err(|it| invalid(number, it))?);
        }
        return Ok(found);
    }
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|it| invalid(1, it.to_string()))?.clone();
    if !header.iter().any(|it| it == "class") || !header.iter().any(|it| it == "id" || it == "digest") {
        return Err(invalid(1, "the header has other columns".into()));
    }
    for row in reader.into_records() {
        let line = |position: Option<&csv::Position>| position.map_or(0, csv::Position::line);
        let row = row.map_err(|it| invalid(line(it.position()), it.to_string()))?;
        let number = line(row.position());
        let row = row.deserialize(Some(&header)).map_err(|it| invalid(number, it.to_string()))?;
        found.push(true_label(row).map_err(|it| invalid(number, it))?);
    }
    Ok(found)
}

fn true_label(row: Row) -> Result<TrueLabel, String> {
    let non_empty = |value: Option<String>| value.filter(|it| !it.is_empty());
    let subject = match (non_empty(row.id), non_empty(row.digest)) {
        (Some(id), None) => Subject::Request(id),
        (None, Some(digest)) => {
            let digest: Result<Digest> = digest.parse().or_else(|_| Digest::from_hex(&digest));
            Subject::Image(digest.map_err(|it| it.to_string())?)
        }
        _ => return Err("it needs either an id or a digest".into()),
    };
    Ok(TrueLabel { subject, class: row.class })
}

/// Records true labels. `classes` returns the classes of the package that answered a record. Either all
/// labels are written or none: unknown ids, unknown classes and two different labels for one id are errors.
pub fn record_labels(
    repo: &Repo,
    environment: &str,
    true_labels: &[TrueLabel],
    classes: &dyn Fn(&Record) -> Result<Vec<String>>,
) -> Result<FeedbackSummary> {
    let wanted = by_subject(true_labels)?;
    let mut by_day: BTreeMap<Day, Labels> = BTreeMap::new();
    let mut matched: BTreeSet<&Subject> = BTreeSet::new();
    let (mut unknown, mut conflicting) = (BTreeSet::new(), BTreeSet::new());
    let mut image_of: BTreeMap<String, Digest> = BTreeMap::new();
    let wanted_ids: BTreeSet<&str> = wanted.keys().filter_map(|it| it.id()).collect();
    seal::for_each_record(repo, environment, &mut |record| {
        let subjects = [Subject::Request(record.id.clone()), Subject::Image(record.input)];
        let labels: Vec<_> = subjects.iter().filter_map(|it| wanted.get_key_value(it)).collect();
        // A label by request id is ambiguous if the id has several images; one by digest never is.
        if wanted_ids.contains(&record.id[..])
            && image_of.insert(record.id.clone(), record.input).is_some_and(|it| it != record.input)
        {
            conflicting.insert(record.id.clone());
        }
        for (subject, class) in labels {
            matched.insert(subject);
            if !classes(&record)?.iter().any(|it| it == class) {
                unknown.insert((*class).to_owned());
            }
            let day = by_day.entry(Day::of(record.captured)).or_default();
            if day.insert(&record, (*class).to_owned()).is_some_and(|it| it != **class) {
                conflicting.insert(record.id.clone());
            }
        }
        Ok(())
    })?;
    reject(
        Kind::NotFound,
        "unknown in this environment",
        wanted.keys().copied().filter(|it| !matched.contains(it)).map(show),
    )?;
    reject(Kind::Usage, "not a class of the model that answered", unknown.into_iter())?;
    reject(
        Kind::Conflict,
        "labeled with different classes, or used as the id of several images",
        conflicting.into_iter(),
    )?;
    write(repo, environment, by_day)
}

/// Returns the class of each subject; two different classes for one subject are an error.
fn by_subject(true_labels: &[TrueLabel]) -> Result<BTreeMap<&Subject, &str>> {
    let mut wanted = BTreeMap::new();
    let mut conflicting = BTreeSet::new();
    for label in true_labels {
        if wanted.insert(&label.subject, &label.class[..]).is_some_and(|class| class != label.class) {
            conflicting.insert(&label.subject);
        }
    }
    reject(Kind::Conflict, "labeled with different classes", conflicting.into_iter().map(show))?;
    if wanted.is_empty() {
        return Err(Error::usage("the file contains no labels"));
    }
    Ok(wanted)
}

fn show(subject: &Subject) -> String {
    match subject {
        Subject::Request(id) => crate::path::escape_bytes(id.as_bytes()),
        Subject::Image(digest) => digest.to_string(),
    }
}

/// Fails if there are culprits, and names the first ones.
fn reject(kind: Kind, what: &str, culprits: impl Iterator<Item = String>) -> Result<()> {
    let all: Vec<_> = culprits.map(|it| format!("`{it}`")).collect();
    if all.is_empty() {
        return Ok(());
    }
    let more = all.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = all[..all.len().min(MAX_NAMED)].join(", ");
    Err(Error::new(kind, format!("{what}: {named}{more}")).hint("nothing was changed"))
}

fn write(repo: &Repo, environment: &str, by_day: BTreeMap<Day, Labels>) -> Result<FeedbackSummary> {
    let mut summary = FeedbackSummary::default();
    let mut texts = Vec::new();
    for (day, added) in by_day {
        let path = paths::labels_file(environment, day)?;
        let mut labels = read(&repo.files, &path)?;
        for (key, label) in added.0 {
            match labels.0.insert(key, label.clone()) {
                None => summary.new += 1,
                Some(before) if before == label => summary.same += 1,
                Some(_) => summary.changed += 1,
            }
        }
        texts.push((path, labels.0.iter().map(line).collect::<String>()));
        summary.days.insert(day);
    }
    texts.iter().try_for_each(|(path, text)| repo.files.write(path, text.as_bytes(), Sync::Now))?;
    Ok(summary)
}

fn line(((id, digest), class): (&(String, Digest), &String)) -> String {
    format!("{id}\t{digest}\t{class}\n")
}

fn read(files: &Root, path: &RepoPath) -> Result<Labels> {
    let Some(bytes) = files.read_if_exists(path)? else { return Ok(Labels::default()) };
    let invalid = |line: usize| Error::corrupt(format!("line {line} of `{path}` is not a label"));
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid(1))?;
    if document::has_conflict_markers(text) {
        let error = Error::corrupt(format!("`{path}` has merge conflict markers"));
        return Err(error.hint("keep the lines of both sides and remove the markers"));
    }
    let row = |(index, line): (usize, &str)| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [id, digest, class] = fields[..] else { return Err(invalid(index + 1)) };
        let digest = digest.parse().map_err(|_| invalid(index + 1))?;
        Ok(((id.to_owned(), digest), class.to_owned()))
    };
    text.lines().enumerate().map(row).collect::<Result<_>>().map(Labels)
}

/// Reads the labels of a day; empty if there are none.
pub fn read_labels(files: &Root, environment: &str, day: Day) -> Result<Labels> {
    read(files, &paths::labels_file(environment, day)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(id: &str, class: &str) -> TrueLabel {
        TrueLabel { subject: Subject::Request(id.into()), class: class.into() }
    }

    #[test]
    fn csv_and_json_lines_are_equivalent() {
        let expected = [label("a", "cat"), label("b,c", "dog")];
        for text in [
            "id,class\na,cat\n\"b,c\",dog\n",
            "\u{feff}class, id\r\ncat , a\r\ndog,\"b,c\"\r\n",
            "{\"id\":\"a\",\"class\":\"cat\"}\n\n{\"class\":\"dog\",\"id\":\"b,c\"}\n",
            "id,class,who\na,cat,ada\n\"b,c\",dog,\n",
            "{\"id\":\"a\",\"class\":\"cat\"}\n{\"class\":\"dog\",\"id\":\"b,c\",\"who\":\"ada\"}\n",
        ] {
            assert_eq!(parse_labels("x", text.as_bytes()).unwrap(), expected, "{text}");
        }
        let digest = Digest::of(b"x");
        for spelling in [digest.to_string(), digest.hex()] {
            let read = parse_labels("x", format!("digest,class\n{spelling},cat\n").as_bytes()).unwrap();
            assert_eq!(read[0].subject, Subject::Image(digest));
        }
    }

    #[test]
    fn an_invalid_line_is_named() {
        for (text, line) in [
            ("", "line 1"),
            ("name,class\na,cat\n", "line 1"),
            ("id,class\na,cat\nb\n", "line 3"),
            ("digest,class\nb3:12,cat\n", "line 2"),
            ("id,class\n,cat\n", "line 2"),
            ("{\"id\":\"a\",\"class\":\"cat\"}\n{\"id\":1}\n", "line 2"),
            ("{\"id\":\"a\",\"klass\":\"cat\"}", "line 1"),
        ] {
            let error = parse_labels("truth.csv", text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.to_string().starts_with(&format!("{line} of `truth.csv`")), "{text:?}: {error}");
        }
    }

    #[test]
    fn two_classes_for_one_subject_are_rejected_and_five_culprits_named() {
        let both = |number: u32| [label(&format!("r{number}"), "cat"), label(&format!("r{number}"), "dog")];
        let labels: Vec<_> = (0..8).flat_map(both).collect();
        let error = by_subject(&labels).unwrap_err();
        assert_eq!(
            error.to_string(),
            "labeled with different classes: `r0`, `r1`, `r2`, `r3`, `r4` and 3 more"
        );
        assert_eq!(by_subject(&[label("a", "cat"), label("a", "cat")]).unwrap().len(), 1);
    }
}
