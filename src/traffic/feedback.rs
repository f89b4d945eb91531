//! What people say of pictures later: the truth, by the id of a request or the digest of a picture.
//!
//! It is kept beside the day a picture was captured, as a plain file for Git: a line a request, sorted.

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
    traffic::{Record, place, seal},
};

/// So many culprits are named.
const NAMED: usize = 5;

/// What a line of truth is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Id(String),
    Picture(Digest),
}

impl Subject {
    fn id(&self) -> Option<&str> {
        if let Self::Id(id) = self { Some(id) } else { None }
    }
}

/// One line of truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    pub subject: Subject,
    pub class: String,
}

/// What became of some truths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    pub new: usize,
    /// Labels that were others before.
    pub changed: usize,
    pub same: usize,
    pub days: BTreeSet<Day>,
}

/// The true class of each labelled picture. Ids come from outside and may be used twice, so the picture counts, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<(String, Digest), String>);

impl Labels {
    /// The true class of what a request asked about, if somebody told it.
    pub fn of(&self, record: &Record) -> Option<&String> {
        self.0.get(&(record.id.clone(), record.input))
    }

    pub fn insert(&mut self, record: &Record, class: String) -> Option<String> {
        self.0.insert((record.id.clone(), record.input), class)
    }

    pub fn forget(&mut self, record: &Record) {
        self.0.remove(&(record.id.clone(), record.input));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What else a line says is somebody else's business.
#[derive(Deserialize)]
struct Row {
    id: Option<String>,
    digest: Option<String>,
    class: String,
}

/// Reads CSV with the header `id,class` or `digest,class`, or JSON lines with the same keys.
pub fn parse_truth(name: &str, bytes: &[u8]) -> Result<Vec<Truth>> {
    let wrong = |line: u64, why: String| {
        let error = Error::corrupt(format!("line {line} of `{name}` is no label: {why}"));
        error
            .hint("CSV with the header `id,class` or `digest,class`, or a JSON object a line with these keys")
    };
    let text = std::str::from_utf8(bytes).map_err(|_| wrong(1, "it is not UTF-8".into()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    if text.trim_start().starts_with('{') {
        for (at, line) in text.lines().enumerate().filter(|it| !it.1.trim().is_empty()) {
            let row = serde_json::from_str(line).map_err(|it| wrong(at as u64 + 1, it.to_string()))?;
            found.push(truth(row).map_err(|it| wrong(at as u64 + 1, it))?);
        }
        return Ok(found);
    }
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let head = reader.headers().map_err(|it| wrong(1, it.to_string()))?.clone();
    if !head.iter().any(|it| it == "class") || !head.iter().any(|it| it == "id" || it == "digest") {
        return Err(wrong(1, "its columns are others".into()));
    }
    for row in reader.into_records() {
        let line = |it: Option<&csv::Position>| it.map_or(0, csv::Position::line);
        let row = row.map_err(|it| wrong(line(it.position()), it.to_string()))?;
        let at = line(row.position());
        let row = row.deserialize(Some(&head)).map_err(|it| wrong(at, it.to_string()))?;
        found.push(truth(row).map_err(|it| wrong(at, it))?);
    }
    Ok(found)
}

fn truth(row: Row) -> Result<Truth, String> {
    let filled = |it: Option<String>| it.filter(|it| !it.is_empty());
    let subject = match (filled(row.id), filled(row.digest)) {
        (Some(id), None) => Subject::Id(id),
        (None, Some(digest)) => {
            let digest: Result<Digest> = digest.parse().or_else(|_| Digest::from_hex(&digest));
            Subject::Picture(digest.map_err(|it| it.to_string())?)
        }
        _ => return Err("it needs either an id or a digest".into()),
    };
    Ok(Truth { subject, class: row.class })
}

/// Keeps truths. `classes` tells what the package that answered a record can say. All or nothing: unknown
/// ids, unknown classes and two truths for one id are refused.
pub fn feedback(
    repo: &Repo,
    environment: &str,
    truths: &[Truth],
    classes: &dyn Fn(&Record) -> Result<Vec<String>>,
) -> Result<Learnt> {
    let wanted = by_subject(truths)?;
    let mut fresh: BTreeMap<Day, Labels> = BTreeMap::new();
    let mut met: BTreeSet<&Subject> = BTreeSet::new();
    let (mut unknown, mut torn) = (BTreeSet::new(), BTreeSet::new());
    let mut pictures: BTreeMap<String, Digest> = BTreeMap::new();
    let by_id: BTreeSet<&str> = wanted.keys().filter_map(|it| it.id()).collect();
    seal::each(repo, environment, &mut |record| {
        let subjects = [Subject::Id(record.id.clone()), Subject::Picture(record.input)];
        let said: Vec<_> = subjects.iter().filter_map(|it| wanted.get_key_value(it)).collect();
        // Whoever names a request must mean one picture; a digest is one whatever the request was called.
        if by_id.contains(&record.id[..])
            && pictures.insert(record.id.clone(), record.input).is_some_and(|it| it != record.input)
        {
            torn.insert(record.id.clone());
        }
        for (subject, class) in said {
            met.insert(subject);
            if !classes(&record)?.iter().any(|it| it == class) {
                unknown.insert((*class).to_owned());
            }
            let day = fresh.entry(Day::of(record.captured)).or_default();
            if day.insert(&record, (*class).to_owned()).is_some_and(|it| it != **class) {
                torn.insert(record.id.clone());
            }
        }
        Ok(())
    })?;
    refuse(
        Kind::NotFound,
        "not known in this environment",
        wanted.keys().copied().filter(|it| !met.contains(it)).map(show),
    )?;
    refuse(Kind::Usage, "not a class of the model that answered", unknown.into_iter())?;
    refuse(Kind::Conflict, "labelled in two ways, or the id of several pictures", torn.into_iter())?;
    write(repo, environment, fresh)
}

/// One class for each subject.
fn by_subject(truths: &[Truth]) -> Result<BTreeMap<&Subject, &str>> {
    let mut wanted = BTreeMap::new();
    let mut torn = BTreeSet::new();
    for truth in truths {
        if wanted.insert(&truth.subject, &truth.class[..]).is_some_and(|it| it != truth.class) {
            torn.insert(&truth.subject);
        }
    }
    refuse(Kind::Conflict, "labelled in two ways", torn.into_iter().map(show))?;
    if wanted.is_empty() {
        return Err(Error::usage("there are no labels in it"));
    }
    Ok(wanted)
}

fn show(subject: &Subject) -> String {
    match subject {
        Subject::Id(id) => crate::path::show(id.as_bytes()),
        Subject::Picture(digest) => digest.to_string(),
    }
}

fn refuse(kind: Kind, what: &str, culprits: impl Iterator<Item = String>) -> Result<()> {
    let all: Vec<_> = culprits.map(|it| format!("`{it}`")).collect();
    if all.is_empty() {
        return Ok(());
    }
    let more = all.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = all[..all.len().min(NAMED)].join(", ");
    Err(Error::new(kind, format!("{what}: {named}{more}")).hint("nothing was changed"))
}

fn write(repo: &Repo, environment: &str, fresh: BTreeMap<Day, Labels>) -> Result<Learnt> {
    let mut learnt = Learnt::default();
    let mut texts = Vec::new();
    for (day, fresh) in fresh {
        let path = place::labels_file(environment, day)?;
        let mut labels = read(&repo.files, &path)?;
        for (key, label) in fresh.0 {
            match labels.0.insert(key, label.clone()) {
                None => learnt.new += 1,
                Some(before) if before == label => learnt.same += 1,
                Some(_) => learnt.changed += 1,
            }
        }
        texts.push((path, labels.0.iter().map(line).collect::<String>()));
        learnt.days.insert(day);
    }
    texts.iter().try_for_each(|(path, text)| repo.files.write(path, text.as_bytes(), Sync::Yes))?;
    Ok(learnt)
}

fn line(((id, digest), class): (&(String, Digest), &String)) -> String {
    format!("{id}\t{digest}\t{class}\n")
}

fn read(files: &Root, path: &RepoPath) -> Result<Labels> {
    let Some(bytes) = files.read_if_there(path)? else { return Ok(Labels::default()) };
    let broken = |line: usize| Error::corrupt(format!("line {line} of `{path}` is no label"));
    let text = std::str::from_utf8(&bytes).map_err(|_| broken(1))?;
    if document::has_conflict_marks(text) {
        let error = Error::corrupt(format!("`{path}` has merge-conflict marks"));
        return Err(error.hint("keep the lines of both sides, then take the marks out"));
    }
    let row = |(at, line): (usize, &str)| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [id, digest, class] = fields[..] else { return Err(broken(at + 1)) };
        let digest = digest.parse().map_err(|_| broken(at + 1))?;
        Ok(((id.to_owned(), digest), class.to_owned()))
    };
    text.lines().enumerate().map(row).collect::<Result<_>>().map(Labels)
}

/// The true classes of a day's requests, as far as somebody told them.
pub fn labels(files: &Root, environment: &str, day: Day) -> Result<Labels> {
    read(files, &place::labels_file(environment, day)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str, class: &str) -> Truth {
        Truth { subject: Subject::Id(id.into()), class: class.into() }
    }

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let expected = [id("a", "cat"), id("b,c", "dog")];
        for text in [
            "id,class\na,cat\n\"b,c\",dog\n",
            "\u{feff}class, id\r\ncat , a\r\ndog,\"b,c\"\r\n",
            "{\"id\":\"a\",\"class\":\"cat\"}\n\n{\"class\":\"dog\",\"id\":\"b,c\"}\n",
            "id,class,who\na,cat,ada\n\"b,c\",dog,\n",
            "{\"id\":\"a\",\"class\":\"cat\"}\n{\"class\":\"dog\",\"id\":\"b,c\",\"who\":\"ada\"}\n",
        ] {
            assert_eq!(parse_truth("x", text.as_bytes()).unwrap(), expected, "{text}");
        }
        let digest = Digest::of(b"x");
        for spelling in [digest.to_string(), digest.hex()] {
            let read = parse_truth("x", format!("digest,class\n{spelling},cat\n").as_bytes()).unwrap();
            assert_eq!(read[0].subject, Subject::Picture(digest));
        }
    }

    #[test]
    fn a_broken_line_is_named() {
        for (text, line) in [
            ("", "line 1"),
            ("name,class\na,cat\n", "line 1"),
            ("id,class\na,cat\nb\n", "line 3"),
            ("digest,class\nb3:12,cat\n", "line 2"),
            ("id,class\n,cat\n", "line 2"),
            ("{\"id\":\"a\",\"class\":\"cat\"}\n{\"id\":1}\n", "line 2"),
            ("{\"id\":\"a\",\"klass\":\"cat\"}", "line 1"),
        ] {
            let error = parse_truth("truth.csv", text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.to_string().starts_with(&format!("{line} of `truth.csv`")), "{text:?}: {error}");
        }
    }

    #[test]
    fn two_classes_for_one_subject_are_refused_and_five_culprits_named() {
        let truths: Vec<_> =
            (0..8).flat_map(|at| [id(&format!("r{at}"), "cat"), id(&format!("r{at}"), "dog")]).collect();
        let error = by_subject(&truths).unwrap_err();
        assert_eq!(error.to_string(), "labelled in two ways: `r0`, `r1`, `r2`, `r3`, `r4` and 3 more");
        assert_eq!(by_subject(&[id("a", "cat"), id("a", "cat")]).unwrap().len(), 1);
    }
}
