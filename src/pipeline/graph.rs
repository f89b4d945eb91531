//! The order of stages, and everything that is wrong with it before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pipeline::Manifest,
};

/// Stages in an order in which each comes after those it needs.
#[derive(Debug, Default)]
pub struct Graph {
    pub order: Vec<String>,
    /// Stage → the stages whose outputs it reads.
    pub needs: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub fn new(manifest: &Manifest) -> Result<Self> {
        let outputs = outputs(manifest)?;
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, stage) in &manifest.stages {
            let params = stage.params.iter().map(|it| &it.0);
            let reads = stage.dependencies.iter().chain(params);
            let found = reads.flat_map(|it| meeting(&outputs, it)).map(|it| it.1.to_owned()).collect();
            needs.insert(name.clone(), found);
        }
        let order = sort(&needs)?;
        Ok(Self { order, needs })
    }

    /// These stages and all they need, in order; all of them when none are named.
    pub fn upstream_of(&self, names: &[String]) -> Result<Vec<String>> {
        if names.is_empty() {
            return Ok(self.order.clone());
        }
        let mut wanted = BTreeSet::new();
        let mut rest = names.to_vec();
        while let Some(name) = rest.pop() {
            let Some(needs) = self.needs.get(&name) else {
                let known = self.order.join(", ");
                return Err(Error::not_found(format!("there is no stage `{name}`"))
                    .hint(format!("there are: {known}")));
            };
            if wanted.insert(name) {
                rest.extend(needs.iter().cloned());
            }
        }
        Ok(self.order.iter().filter(|it| wanted.contains(*it)).cloned().collect())
    }
}

/// Every output with its stage, none of them in another. There may be a hundred thousand: no two lists of stages
/// are gone through against each other.
fn outputs(manifest: &Manifest) -> Result<BTreeMap<&RepoPath, &str>> {
    let mut outputs = BTreeMap::new();
    for (stage, out) in manifest.outputs() {
        if let Some(other) = outputs.insert(&out.path, stage) {
            let message = format!("`{}` is an output of both `{other}` and `{stage}`", out.path);
            return Err(Error::usage(message).hint("one path is made by one stage"));
        }
    }
    for (path, stage) in &outputs {
        let above = path.ancestors().skip(1).find_map(|it| outputs.get_key_value(&it));
        if let Some((outer, other)) = above {
            let message = format!(
                "the outputs `{outer}` (of `{other}`) and `{path}` (of `{stage}`) lie one inside the other"
            );
            return Err(Error::usage(message).hint("give each a place of its own"));
        }
    }
    Ok(outputs)
}

/// Outputs that lie in `path`, and the one that it lies in.
fn meeting<'o>(outputs: &BTreeMap<&'o RepoPath, &'o str>, path: &RepoPath) -> Vec<(&'o RepoPath, &'o str)> {
    let above = path.ancestors().skip(1).find_map(|it| outputs.get_key_value(&it));
    let near = outputs.range::<RepoPath, _>(path..).take_while(|it| it.0.bytes().starts_with(path.bytes()));
    let within = near.filter(|it| it.0.is_within(path));
    above.into_iter().chain(within).map(|(path, stage)| (*path, *stage)).collect()
}

/// Depth first, in the order of names, so that the order is always the same. Without recursion: a chain of stages
/// may be longer than any stack.
fn sort(needs: &BTreeMap<String, BTreeSet<String>>) -> Result<Vec<String>> {
    let (mut order, mut done) = (Vec::new(), BTreeSet::new());
    for start in needs.keys().filter(|it| !done.contains(*it)).cloned().collect::<Vec<_>>() {
        // The way to where we are: each stage with what it needs and was not looked at yet.
        let mut way = vec![(start.clone(), needs[&start].iter())];
        let mut on_way = BTreeSet::from([start]);
        while let Some((name, rest)) = way.last_mut() {
            match rest.next() {
                Some(next) if done.contains(next) => {}
                Some(next) if !on_way.insert(next.clone()) => {
                    let names: Vec<&str> = way.iter().map(|it| it.0.as_str()).collect();
                    return Err(circle(&names, next));
                }
                Some(next) => way.push((next.clone(), needs[next].iter())),
                None => {
                    on_way.remove(name);
                    if done.insert(name.clone()) {
                        order.push(name.clone());
                    }
                    way.pop();
                }
            }
        }
    }
    Ok(order)
}

/// The end of the way leads back to `again`.
fn circle(way: &[&str], again: &str) -> Error {
    let start = way.iter().position(|it| *it == again).unwrap_or(0);
    let names: Vec<_> = way[start..].iter().chain([&again]).map(|it| format!("`{it}`")).collect();
    let message = format!("these stages need each other in a circle: {}", names.join(" → "));
    Error::usage(message).hint("a stage cannot read what is made from its own output")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn graph(text: &str) -> Result<Graph> {
        let manifest =
            Manifest::parse(&RepoPath::from_text("mlx.toml").unwrap(), text.as_bytes(), Path::new("/r"))?;
        Graph::new(&manifest)
    }

    #[test]
    fn a_stage_comes_after_what_it_needs() {
        let graph =
            graph("[stage.a]\ncmd='x'\ndeps=['c']\n[stage.b]\ncmd='x'\nouts=['c']\n[stage.z]\ncmd='x'\n")
                .unwrap();
        assert_eq!(graph.order, ["b", "a", "z"]);
        assert_eq!(graph.upstream_of(&["a".into()]).unwrap(), ["b", "a"]);
        assert!(graph.upstream_of(&["nope".into()]).is_err());
    }

    #[test]
    fn a_hundred_thousand_stages_in_a_row_are_sorted() {
        let stage = |it: u32| format!("[stage.s{it}]\ncmd='x'\ndeps=['o{}']\nouts=['o{it}']\n", it + 1);
        let text: String = (0..100_000).map(stage).collect();
        let graph = graph(&text).unwrap();
        assert_eq!(
            (graph.order.len(), &graph.order[0][..], &graph.order[99_999][..]),
            (100_000, "s99999", "s0")
        );
    }

    #[test]
    fn what_lies_beside_a_dependency_is_not_in_it() {
        let text = "[stage.a]\ncmd='x'\ndeps=['d', 'o/x/y']\n[stage.b]\ncmd='x'\nouts=['d-', 'd/e']\n\
            [stage.c]\ncmd='x'\nouts=['d.e', 'o/x']\n[stage.d]\ncmd='x'\nouts=['o-', 'dd']\n";
        let needs = graph(text).unwrap().needs;
        assert_eq!(needs["a"], BTreeSet::from(["b".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn circles_are_told_whole() {
        let text = "[stage.a]\ncmd='x'\ndeps=['2']\nouts=['1']\n[stage.b]\ncmd='x'\ndeps=['1']\nouts=['2']\n";
        let message = graph(text).unwrap_err().to_string();
        assert_eq!(message, "these stages need each other in a circle: `a` → `b` → `a`");
        let own = graph("[stage.a]\ncmd='x'\ndeps=['1']\nouts=['1']\n").unwrap_err().to_string();
        assert_eq!(own, "these stages need each other in a circle: `a` → `a`");
    }

    #[test]
    fn outputs_may_not_meet() {
        let twice = graph("[stage.a]\ncmd='x'\nouts=['o']\n[stage.b]\ncmd='x'\nouts=['o']\n").unwrap_err();
        assert_eq!(twice.to_string(), "`o` is an output of both `a` and `b`");
        let inside =
            graph("[stage.a]\ncmd='x'\nouts=['o']\n[stage.b]\ncmd='x'\nmetrics=['o/m.json']\n").unwrap_err();
        assert!(inside.to_string().contains("lie one inside the other"));
    }
}
