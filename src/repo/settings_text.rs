//! Text of a settings file: reads its values, sets and removes keys. Comments stay where they are, and so
//! does everything that is not changed.

use std::collections::BTreeMap;

use toml_edit::{Document, DocumentMut, Item, Table, TableLike, TomlError, Value, value};

use crate::{
    document,
    error::{Error, Result},
};

/// Returns all values by their dotted keys; values that are not text are written as TOML.
pub fn values(text: &str) -> Result<BTreeMap<String, String>> {
    fn collect(table: &dyn TableLike, prefix: &str, found: &mut BTreeMap<String, String>) {
        for (name, item) in table.iter() {
            let key = format!("{prefix}{name}");
            match item.as_table_like() {
                Some(inner) => collect(inner, &format!("{key}."), found),
                None => {
                    let plain = || item.to_string().trim().to_owned();
                    found.insert(key, item.as_str().map_or_else(plain, str::to_owned));
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(parse(text)?.as_table(), "", &mut found);
    Ok(found)
}

/// Returns the text with the key set. A key that is new stands below everything that was there, comments
/// included, or at the end of its table.
pub fn set(text: &str, key: &str, new: &str) -> Result<String> {
    let mut doc = parse(text)?;
    let tail = doc.trailing().as_str().unwrap_or_default().to_owned();
    doc.set_trailing("");
    let before = doc.to_string();
    let (folders, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut table: &mut dyn TableLike = doc.as_table_mut();
    for folder in folders.split('.').filter(|folder| !folder.is_empty()) {
        let item = table.entry(folder).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        table = item
            .as_table_like_mut()
            .ok_or_else(|| Error::corrupt(format!("`{folder}` is a value, but `{key}` needs a table")))?;
    }
    match table.get_mut(name) {
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = Value::from(new);
            *old.decor_mut() = decor;
        }
        Some(Item::Table(_) | Item::ArrayOfTables(_)) => {
            return Err(Error::corrupt(format!("`{key}` is a table, but takes a value")));
        }
        _ => drop(table.insert(name, value(new))),
    }
    let after = doc.to_string();
    let Some(added) = after.strip_prefix(&before) else { return Ok(after + &tail) };
    let end = if tail.is_empty() || tail.ends_with('\n') { "" } else { "\n" };
    let gap = if tail.is_empty() || added.starts_with('\n') { "" } else { "\n" };
    Ok(format!("{before}{tail}{end}{gap}{added}"))
}

/// Returns the text without the key, and without its table's heading if that is empty then; `None` if the key
/// is not there.
pub fn unset(text: &str, key: &str) -> Result<Option<String>> {
    let names: Vec<&str> = key.split('.').collect();
    let doc = Document::parse(text).map_err(|error| syntax_error(text, &error))?;
    let (mut table, mut inline) = (doc.as_table() as &dyn TableLike, false);
    let mut heading = None;
    for name in &names[..names.len() - 1] {
        let Some(item) = table.get(name) else { return Ok(None) };
        let Some(inner) = item.as_table_like() else { return Ok(None) };
        inline |= item.is_inline_table();
        heading = item.as_table().filter(|it| !it.is_dotted() && it.len() == 1).and_then(Table::span);
        table = inner;
    }
    let Some((found, item)) = table.get_key_value(names[names.len() - 1]) else { return Ok(None) };
    let (Some(first), Some(last), false) = (found.span(), item.span(), inline) else {
        let mut doc = parse(text)?;
        remove(doc.as_table_mut(), &names);
        return Ok(Some(doc.to_string()));
    };
    let mut left = text.to_owned();
    left.replace_range(lines_of(text, first.start, last.end), "");
    if let Some(heading) = heading {
        remove_heading(&mut left, heading.start);
    }
    Ok(Some(left))
}

/// Removes the line of a heading that has nothing below it, and one of the empty lines around it.
fn remove_heading(text: &mut String, at: usize) {
    let line = lines_of(text, at, at);
    text.replace_range(line.clone(), "");
    let (above, below) = text.split_at(line.start);
    if above.ends_with("\n\n") && (below.is_empty() || below.starts_with('\n')) {
        text.remove(line.start - 1);
    }
}

/// Returns the range of the whole lines from one byte to another, with the end of the last.
fn lines_of(text: &str, first: usize, last: usize) -> std::ops::Range<usize> {
    let start = text[..first].rfind('\n').map_or(0, |at| at + 1);
    let end = text[last..].find('\n').map_or(text.len(), |at| last + at + 1);
    start..end
}

/// Removes a key, and the tables around it that are empty then.
fn remove(table: &mut dyn TableLike, names: &[&str]) {
    let Some((name, rest)) = names.split_first() else { return };
    if let Some(inner) = table.get_mut(name).and_then(Item::as_table_like_mut).filter(|_| !rest.is_empty()) {
        remove(inner, rest);
        if !inner.is_empty() {
            return;
        }
    }
    table.remove(name);
}

fn parse(text: &str) -> Result<DocumentMut> {
    text.parse().map_err(|error| syntax_error(text, &error))
}

fn syntax_error(text: &str, error: &TomlError) -> Error {
    if document::has_conflict_markers(text) {
        let error = Error::corrupt("it has merge conflict markers");
        return error.hint("resolve the merge conflict, then try again");
    }
    let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count()) + 1;
    let reason = error.message().lines().collect::<Vec<_>>().join(", ");
    Error::corrupt(format!("line {line}: {reason}")).hint("correct that line: settings are TOML")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Ask the data team.\n\n[core]\nremote = \"a\" # prod\n\n# ours\n[remote.a]\n# \
                        Milan\nurl = \"file:///a\"\n# end\n";

    fn without(text: &str, key: &str) -> String {
        unset(text, key).unwrap().unwrap()
    }

    #[test]
    fn comments_stay_where_they_are_when_a_key_is_set() {
        assert_eq!(set("", "core.remote", "b").unwrap(), "[core]\nremote = \"b\"\n");
        assert_eq!(set("# head\n", "core.remote", "b").unwrap(), "# head\n\n[core]\nremote = \"b\"\n");
        assert_eq!(set("# head", "core.remote", "b").unwrap(), "# head\n\n[core]\nremote = \"b\"\n");
        let changed = set(TEXT, "core.remote", "b").unwrap();
        assert_eq!(changed, TEXT.replace("remote = \"a\" #", "remote = \"b\" #"));
        let added = set(TEXT, "remote.b.url", "file:///b").unwrap();
        assert_eq!(added, format!("{TEXT}\n[remote.b]\nurl = \"file:///b\"\n"));
        let option = set(TEXT, "remote.a.region", "r").unwrap();
        assert_eq!(option, format!("{TEXT}\nregion = \"r\"\n"));
        let between = set(TEXT, "core.other", "c").unwrap();
        assert_eq!(between, TEXT.replace("# prod\n", "# prod\nother = \"c\"\n"));
    }

    #[test]
    fn comments_stay_where_they_are_when_a_key_is_removed() {
        let expected = TEXT.replace("[remote.a]\n", "").replace("url = \"file:///a\"\n", "");
        assert_eq!(without(TEXT, "remote.a.url"), expected);
        assert_eq!(
            without(TEXT, "core.remote"),
            "# Ask the data team.\n\n# ours\n[remote.a]\n# Milan\nurl = \"file:///a\"\n# end\n"
        );
        assert_eq!(unset(TEXT, "core.other").unwrap(), None);
        assert_eq!(unset(TEXT, "remote.a.url.x").unwrap(), None);
    }

    #[test]
    fn setting_and_removing_a_key_leaves_the_text_as_it_was() {
        for text in [TEXT, "# head\n", "", "[core]\nremote = \"a\"\n", "[a.b]\nc = 1\n\n[d]\ne = 1\n"] {
            let there = set(text, "remote.z.url", "file:///z").unwrap();
            assert_eq!(values(&there).unwrap()["remote.z.url"], "file:///z");
            let left = without(&there, "remote.z.url");
            assert_eq!(left.trim_end(), text.trim_end());
        }
    }

    #[test]
    fn every_way_to_write_a_table_is_edited() {
        for text in [
            "remote.a.url = \"x\"\nremote.a.region = \"r\"\n",
            "[remote]\na.url = \"x\"\na.region = \"r\"\n",
            "[remote]\na = { url = \"x\", region = \"r\" }\n",
            "remote = { a = { url = \"x\", region = \"r\" } }\n",
            "[remote.a]\nurl = '''x'''\n\"region\" = \"\"\"\nr\"\"\"\n",
        ] {
            let changed = set(text, "remote.a.url", "y").unwrap();
            assert_eq!(values(&changed).unwrap()["remote.a.url"], "y", "{text}");
            let one = without(&changed, "remote.a.region");
            assert_eq!(
                values(&one).unwrap(),
                BTreeMap::from([("remote.a.url".into(), "y".into())]),
                "{text}"
            );
            assert_eq!(values(&without(&one, "remote.a.url")).unwrap(), BTreeMap::new(), "{text}");
        }
    }

    #[test]
    fn a_table_is_not_replaced_by_a_value_nor_a_value_by_a_table() {
        assert!(set("[cache.link]\na = 1\n", "cache.link", "copy").is_err());
        assert!(set("cache = 1\n", "cache.link", "copy").is_err());
    }

    #[test]
    fn a_syntax_error_is_one_line_that_says_where() {
        let error = values("[core]\nremote = \"a\nx = 1\n").unwrap_err();
        assert!(error.to_string().starts_with("line 2: ") && !error.to_string().contains('\n'), "{error}");
        let error = values("<<<<<<< HEAD\na = 1\n=======\na = 2\n>>>>>>> b\n").unwrap_err();
        assert_eq!(error.to_string(), "it has merge conflict markers");
    }
}
