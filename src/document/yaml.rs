//! Reader of YAML documents: builds a value from the events of a YAML 1.2 parser.
//!
//! Aliases are expanded within a limit, `<<` merges tables as YAML 1.1 does, and a key that occurs twice is
//! an error. Tags of the core schema give a scalar their type; a scalar with another tag is a literal that
//! names the tag. A table or list with another tag has no value here and is an error.

use std::collections::{BTreeMap, HashMap};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Tag};

use crate::document::{
    fault::{Fault, MAX_DEPTH},
    number::Number,
    plain,
    value::Value,
};

/// Most values that aliases may add to a document.
const MAX_ALIASED: usize = 100_000;

/// Parses the only document of a YAML file; an empty file is null.
pub fn parse(text: &str) -> Result<Value, Fault> {
    let mut builder = Builder { open: Vec::new(), anchors: HashMap::new(), aliased: 0, root: None };
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| match error.kind() {
            ErrorKind::RecursionLimitExceeded => Fault::too_deep(),
            _ => Fault::new(format!("{} at {}", error.info(), place(*error.marker()))),
        })?;
        if let Event::DocumentStart(..) = event {
            documents += 1;
        }
        if documents > 1 {
            return Err(Fault {
                why: format!("it has two documents; the second begins at {}", place(span.start)),
                hint: "keep one document in a file: remove the line `---`, or move the rest to another file",
            });
        }
        builder.event(event).map_err(|fault| Fault {
            why: format!("{} at {}", fault.why, place(span.start)),
            hint: fault.hint,
        })?;
    }
    Ok(builder.root.unwrap_or_default())
}

fn place(marker: granit_parser::Marker) -> String {
    format!("line {} column {}", marker.line(), marker.col() + 1)
}

/// A table or list that is being read.
enum Open {
    List { items: Vec<Value>, anchor: usize },
    Table { table: BTreeMap<String, Value>, merged: Vec<Value>, key: Option<Key>, anchor: usize },
}

enum Key {
    Name(String),
    /// The plain scalar `<<`.
    Merge,
}

struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Value>,
    /// Number of values that aliases have added.
    aliased: usize,
    root: Option<Value>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>) -> Result<(), Fault> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_merge = style == ScalarStyle::Plain && tag.is_none() && text == "<<";
                if is_merge && self.takes_key() {
                    return self.set_key(Key::Merge);
                }
                let value = scalar(&text, style, tag.as_deref())?;
                self.finish(anchor, value)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), &["seq", "omap", "pairs"])?;
                self.start(Open::List { items: Vec::new(), anchor })
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), &["map", "set"])?;
                self.start(Open::Table { table: BTreeMap::new(), merged: Vec::new(), key: None, anchor })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { items, anchor }) => self.finish(anchor, Value::List(items)),
                Some(Open::Table { table, merged, anchor, .. }) => {
                    self.finish(anchor, Value::Table(merge(table, merged)))
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned();
                let value = value.ok_or_else(|| Fault::new("an alias that is inside of its own value"))?;
                self.aliased += count(&value);
                if self.aliased > MAX_ALIASED {
                    let why = format!("its aliases stand for more than {MAX_ALIASED} values");
                    return Err(Fault { why, hint: "write the values out, or use fewer aliases" });
                }
                if self.open.len() + depth(&value) > MAX_DEPTH {
                    return Err(Fault::too_deep());
                }
                self.finish(0, value)
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, open: Open) -> Result<(), Fault> {
        if self.open.len() == MAX_DEPTH {
            return Err(Fault::too_deep());
        }
        self.open.push(open);
        Ok(())
    }

    fn takes_key(&self) -> bool {
        matches!(self.open.last(), Some(Open::Table { key: None, .. }))
    }

    fn set_key(&mut self, new: Key) -> Result<(), Fault> {
        if let (Some(Open::Table { table, .. }), Key::Name(name)) = (self.open.last(), &new)
            && table.contains_key(name)
        {
            return Err(Fault::new(format!("duplicate key `{name}`")));
        }
        if let Some(Open::Table { key, .. }) = self.open.last_mut() {
            *key = Some(new);
        }
        Ok(())
    }

    /// Puts a whole value where it belongs: into the innermost list or table, as its key or its value.
    fn finish(&mut self, anchor: usize, value: Value) -> Result<(), Fault> {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        if self.takes_key() {
            let name = match value {
                Value::Text(text) | Value::Literal(text) => text,
                other => other.canonical(),
            };
            return self.set_key(Key::Name(name));
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Table { table, merged, key, .. }) => match key.take() {
                Some(Key::Name(name)) => drop(table.insert(name, value)),
                Some(Key::Merge) | None if is_source(&value) => merged.push(value),
                Some(Key::Merge) | None => return Err(Fault::new("`<<` takes a table or a list of tables")),
            },
        }
        Ok(())
    }
}

/// Returns true for a value that `<<` can merge.
fn is_source(value: &Value) -> bool {
    let is_table = |value: &Value| matches!(value, Value::Table(_));
    match value {
        Value::List(list) => list.iter().all(is_table),
        other => is_table(other),
    }
}

/// Adds what `<<` names: the table's own keys stay, and of several sources the first one wins.
fn merge(mut table: BTreeMap<String, Value>, merged: Vec<Value>) -> BTreeMap<String, Value> {
    for source in merged {
        let sources = if let Value::List(list) = source { list } else { vec![source] };
        for source in sources {
            let Value::Table(pairs) = source else { continue };
            for (key, value) in pairs {
                table.entry(key).or_insert(value);
            }
        }
    }
    table
}

fn check_tag(tag: Option<&Tag>, allowed: &[&str]) -> Result<(), Fault> {
    let Some(tag) = tag else { return Ok(()) };
    let name = tag.suffix_in_namespace("tag:yaml.org,2002:");
    let is_non_specific =
        tag.handle().is_empty() && tag.suffix() == "!" || tag.handle() == "!" && tag.suffix().is_empty();
    if is_non_specific || name.is_some_and(|name| allowed.contains(&name.as_ref())) {
        return Ok(());
    }
    Err(Fault {
        why: format!("the tag `{}` cannot be read", shown(tag)),
        hint: "leave the tag out, or move the value to a file of its own and name that file under `deps`",
    })
}

fn shown(tag: &Tag) -> String {
    format!("{}{}", tag.original_handle(), tag.suffix())
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, Fault> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain {
            plain::resolve(text)
        } else {
            Value::Text(text.to_owned())
        });
    };
    let core = plain::core(text);
    let typed = match tag.core_suffix() {
        Some("str") => Some(Value::Text(text.to_owned())),
        Some("null") => Some(core).filter(|value| *value == Value::Null),
        Some("bool") => Some(core).filter(|value| matches!(value, Value::Bool(_))),
        Some("int") => Some(core).filter(|value| matches!(value, Value::Number(it) if it.is_integer())),
        Some("float") => match core {
            Value::Number(number) if number.is_integer() => {
                Number::parse(&format!("{number}.0")).map(Value::Number)
            }
            other => Some(other).filter(|value| matches!(value, Value::Number(_) | Value::Literal(_))),
        },
        // The tag `!` alone means a text.
        _ if shown(tag) == "!" => Some(Value::Text(text.to_owned())),
        _ => Some(Value::Literal(format!("{} {text}", shown(tag)))),
    };
    typed.ok_or_else(|| Fault::new(format!("`{text:.40}` does not fit its tag `{}`", shown(tag))))
}

fn count(value: &Value) -> usize {
    match value {
        Value::List(list) => 1 + list.iter().map(count).sum::<usize>(),
        Value::Table(table) => 1 + table.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::List(list) => 1 + list.iter().map(depth).max().unwrap_or_default(),
        Value::Table(table) => 1 + table.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> String {
        parse(text).unwrap_or_else(|fault| panic!("{text}: {}", fault.why)).canonical()
    }

    fn why(text: &str) -> String {
        parse(text).unwrap_err().why
    }

    #[test]
    fn quotes_styles_tags_and_keys() {
        assert_eq!(read(""), "null");
        assert_eq!(read("n: 100\ny: 2\nY: n\n"), "{\"Y\":\"n\",\"n\":100,\"y\":2}");
        assert_eq!(
            read("a: 010\nb: '010'\nc: |\n  1\nd: >-\n  1\n"),
            "{\"a\":010,\"b\":\"010\",\"c\":\"1\\n\",\"d\":\"1\"}"
        );
        assert_eq!(
            read("1: a\ntrue: b\n~: c\non: d\n"),
            "{\"1\":\"a\",\"null\":\"c\",\"on\":\"d\",\"true\":\"b\"}"
        );
        assert_eq!(
            read("a: !!str 1\nb: !!int '5'\nc: !!float 1\nd: !foo x\ne: ! 1\nf: !!seq [1]\ng: !!float 1e3\n"),
            "{\"a\":\"1\",\"b\":5,\"c\":1.0,\"d\":!foo x,\"e\":\"1\",\"f\":[1],\"g\":1000.0}"
        );
        assert_eq!(read("%YAML 1.2\n---\na: 1 # x\n...\n"), "{\"a\":1}");
        assert_eq!(read("? [1, 2]\n: x\n"), "{\"[1,2]\":\"x\"}");
    }

    #[test]
    fn aliases_and_merges_are_expanded() {
        assert_eq!(read("a: &a [1, 2]\nb: *a\n"), "{\"a\":[1,2],\"b\":[1,2]}");
        assert_eq!(
            read("b: &b {x: 1, y: 1}\na:\n  <<: *b\n  y: 2\n"),
            "{\"a\":{\"x\":1,\"y\":2},\"b\":{\"x\":1,\"y\":1}}"
        );
        assert_eq!(read("<<: [{x: 1}, {x: 2, y: 3}]\n"), "{\"x\":1,\"y\":3}");
        assert_eq!(read("'<<': 1\n"), "{\"<<\":1}");
        assert_eq!(read("a: &k b\n*k : 1\n"), "{\"a\":\"b\",\"b\":1}");
    }

    #[test]
    fn faults_are_one_sentence_with_their_place() {
        let faults = [
            ("a: 1\n---\na: 2\n", "it has two documents; the second begins at line 2 column 1"),
            ("a: 1\nb: 2\na: 3\n", "duplicate key `a` at line 3 column 1"),
            ("a: &a [*a]\n", "an alias that is inside of its own value at line 1 column 8"),
            ("a: !foo [1]\n", "the tag `!foo` cannot be read at line 1 column 9"),
            ("a: !!int x\n", "`x` does not fit its tag `!!int` at line 1 column 10"),
            ("a: {<<: 1}\n", "`<<` takes a table or a list of tables at line 1 column 9"),
        ];
        for (text, expected) in faults {
            assert_eq!(why(text), expected, "{text}");
        }
        assert!(why("a: [1\n").contains("line "), "{}", why("a: [1\n"));
        assert!(why("a: *b\n").contains("line 1"), "{}", why("a: *b\n"));
    }

    #[test]
    fn nesting_and_aliases_have_a_limit() {
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&deep(MAX_DEPTH)).is_ok());
        for levels in [MAX_DEPTH + 1, 300, 10_000] {
            assert!(why(&deep(levels)).contains("nested more than 64 levels"), "{}", why(&deep(levels)));
        }
        let blocks: String = (0..70).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert!(why(&blocks).contains("nested more than 64 levels"), "{}", why(&blocks));
        let half = |name: &str, inside: &str| {
            format!("{name}: &{name} {}{inside}{}\n", "[".repeat(40), "]".repeat(40))
        };
        assert!(why(&format!("{}{}", half("a", "1"), half("b", "*a"))).contains("nested more than"));
        let bomb = (0..12).fold("a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
            let (old, new) = ((b'a' + level) as char, (b'b' + level) as char);
            format!("{text}{new}: &{new} [{}]\n", vec![format!("*{old}"); 9].join(","))
        });
        assert!(why(&bomb).contains("its aliases stand for more than 100000 values"), "{}", why(&bomb));
    }

    proptest! {
        #[test]
        fn no_text_causes_a_panic(text: String, near in "[-a:\\[\\]{}&*!|>'\" \n0-9,?<]{0,40}") {
            drop(parse(&text));
            drop(parse(&near));
        }
    }
}
