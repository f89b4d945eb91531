//! The dependency graph of a pipeline's stages: a stable topological order, and errors for cycles and for
//! outputs that overlap.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pipeline::Manifest,
};

/// Stages sorted so that each comes after the stages it needs.
#[derive(Debug, Default)]
pub struct Graph {
    pub order: Vec<String>,
    /// Stage → the stages whose outputs it reads.
    pub needs: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Builds the graph of a manifest. Cycles and overlapping outputs are errors.
    pub fn new(manifest: &Manifest) -> Result<Self> {
        let outputs = outputs(manifest)?;
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, stage) in &manifest.stages {
            let params = stage.params.iter().map(|it| &it.0);
            let reads = stage.dependencies.iter().chain(params);
            let overlaps = reads.flat_map(|path| overlapping(&outputs, path));
            needs.insert(name.clone(), overlaps.map(|(_, stage)| stage.to_owned()).collect());
        }
        let order = topological_sort(&needs)?;
        Ok(Self { order, needs })
    }

    /// Returns the named stages and all they need, in order; all stages when `names` is empty.
    pub fn upstream_of(&self, names: &[String]) -> Result<Vec<String>> {
        if names.is_empty() {
            return Ok(self.order.clone());
        }
        let mut wanted = BTreeSet::new();
        let mut pending = names.to_vec();
        while let Some(name) = pending.pop() {
            let Some(needs) = self.needs.get(&name) else {
                let known = self.order.join(", ");
                return Err(Error::not_found(format!("stage `{name}` not found"))
                    .hint(format!("known stages: {known}")));
            };
            if wanted.insert(name) {
                pending.extend(needs.iter().cloned());
            }
        }
        Ok(self.order.iter().filter(|it| wanted.contains(*it)).cloned().collect())
    }
}

/// Returns every output with its stage; nested outputs are an error. There may be a hundred thousand outputs,
/// so each is looked up by its ancestors instead of compared with every other.
fn outputs(manifest: &Manifest) -> Result<BTreeMap<&RepoPath, &str>> {
    let mut outputs = BTreeMap::new();
    for (stage, out) in manifest.outputs() {
        if let Some(other) = outputs.insert(&out.path, stage) {
            let message = format!("`{}` is an output of both `{other}` and `{stage}`", out.path);
            return Err(Error::usage(message).hint("each path can be the output of one stage only"));
        }
    }
    for (path, stage) in &outputs {
        let above = path.ancestors().skip(1).find_map(|it| outputs.get_key_value(&it));
        if let Some((outer, other)) = above {
            let message =
                format!("the output `{path}` of `{stage}` is inside the output `{outer}` of `{other}`");
            return Err(Error::usage(message).hint("give each a path of its own"));
        }
    }
    Ok(outputs)
}

/// Returns the outputs inside `path`, and the one that contains it.
fn overlapping<'o>(
    outputs: &BTreeMap<&'o RepoPath, &'o str>,
    path: &RepoPath,
) -> Vec<(&'o RepoPath, &'o str)> {
    let above = path.ancestors().skip(1).find_map(|it| outputs.get_key_value(&it));
    let following = outputs.range::<RepoPath, _>(path..);
    let same_prefix = following.take_while(|(output, _)| output.bytes().starts_with(path.bytes()));
    let within = same_prefix.filter(|(output, _)| output.is_within(path));
    above.into_iter().chain(within).map(|(path, stage)| (*path, *stage)).collect()
}

/// Sorts depth first, in the order of names, so that the result is deterministic. Iterative, since a chain of
/// stages may be deeper than the call stack.
fn topological_sort(needs: &BTreeMap<String, BTreeSet<String>>) -> Result<Vec<String>> {
    let (mut order, mut done) = (Vec::new(), BTreeSet::new());
    for start in needs.keys().filter(|it| !done.contains(*it)).cloned().collect::<Vec<_>>() {
        // The current path: each stage with the stages it needs that were not visited yet.
        let mut path = vec![(start.clone(), needs[&start].iter())];
        let mut on_path = BTreeSet::from([start]);
        while let Some((name, rest)) = path.last_mut() {
            match rest.next() {
                Some(next) if done.contains(next) => {}
                Some(next) if !on_path.insert(next.clone()) => {
                    let names: Vec<&str> = path.iter().map(|(name, _)| name.as_str()).collect();
                    return Err(cycle(&names, next));
                }
                Some(next) => path.push((next.clone(), needs[next].iter())),
                None => {
                    on_path.remove(name);
                    if done.insert(name.clone()) {
                        order.push(name.clone());
                    }
                    path.pop();
                }
            }
        }
    }
    Ok(order)
}

/// Reports the cycle that closes when the end of `path` needs `repeated`.
fn cycle(path: &[&str], repeated: &str) -> Error {
    let start = path.iter().position(|name| *name == repeated).unwrap_or(0);
    let names: Vec<_> = path[start..].iter().chain([&repeated]).map(|name| format!("`{name}`")).collect();
    let message = format!("these stages form a cycle: {}", names.join(" → "));
    Error::usage(message).hint("a stage cannot depend on its own output")
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
        let stage = |at: u32| format!("[stage.s{at}]\ncmd='x'\ndeps=['o{}']\nouts=['o{at}']\n", at + 1);
        let text: String = (0..100_000).map(stage).collect();
        let graph = graph(&text).unwrap();
        assert_eq!(
            (graph.order.len(), &graph.order[0][..], &graph.order[99_999][..]),
            (100_000, "s99999", "s0")
        );
    }

    #[test]
    fn paths_that_only_share_a_prefix_do_not_overlap() {
        let text = "[stage.a]\ncmd='x'\ndeps=['d', 'o/x/y']\n[stage.b]\ncmd='x'\nouts=['d-', 'd/e']\n\
            [stage.c]\ncmd='x'\nouts=['d.e', 'o/x']\n[stage.d]\ncmd='x'\nouts=['o-', 'dd']\n";
        let needs = graph(text).unwrap().needs;
        assert_eq!(needs["a"], BTreeSet::from(["b".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn a_cycle_is_reported_with_all_its_stages() {
        let text = "[stage.a]\ncmd='x'\ndeps=['2']\nouts=['1']\n[stage.b]\ncmd='x'\ndeps=['1']\nouts=['2']\n";
        let message = graph(text).unwrap_err().to_string();
        assert_eq!(message, "these stages form a cycle: `a` → `b` → `a`");
        let own = graph("[stage.a]\ncmd='x'\ndeps=['1']\nouts=['1']\n").unwrap_err().to_string();
        assert_eq!(own, "these stages form a cycle: `a` → `a`");
    }

    #[test]
    fn overlapping_outputs_are_an_error() {
        let twice = graph("[stage.a]\ncmd='x'\nouts=['o']\n[stage.b]\ncmd='x'\nouts=['o']\n").unwrap_err();
        assert_eq!(twice.to_string(), "`o` is an output of both `a` and `b`");
        let inside =
            graph("[stage.a]\ncmd='x'\nouts=['o']\n[stage.b]\ncmd='x'\nmetrics=['o/m.json']\n").unwrap_err();
        assert!(inside.to_string().contains("is inside the output `o` of `a`"));
    }
}
