//! The order of stages, and everything that is wrong with it before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
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
        check_outputs(manifest)?;
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, stage) in &manifest.stages {
            let reads = |path: &crate::path::RepoPath| {
                manifest
                    .outputs()
                    .filter(|it| path.overlaps(&it.1.path))
                    .map(|it| it.0.to_owned())
                    .collect::<Vec<_>>()
            };
            let params = stage.params.iter().map(|it| &it.0);
            let found = stage.dependencies.iter().chain(params).flat_map(reads).collect();
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

fn check_outputs(manifest: &Manifest) -> Result<()> {
    let outputs: Vec<_> = manifest.outputs().collect();
    for (at, (stage, out)) in outputs.iter().enumerate() {
        for (other, second) in &outputs[at + 1..] {
            if out.path == second.path {
                let message = format!("`{}` is an output of both `{stage}` and `{other}`", out.path);
                return Err(Error::usage(message).hint("one path is made by one stage"));
            }
            if out.path.overlaps(&second.path) {
                let message = format!(
                    "the outputs `{}` (of `{stage}`) and `{}` (of `{other}`) lie one inside the other",
                    out.path, second.path
                );
                return Err(Error::usage(message).hint("give each a place of its own"));
            }
        }
    }
    Ok(())
}

/// Depth first, in the order of names, so that the order is always the same.
fn sort(needs: &BTreeMap<String, BTreeSet<String>>) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        needs: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if order.iter().any(|it| it == name) {
            return Ok(());
        }
        if let Some(start) = path.iter().position(|it| it == name) {
            let circle: Vec<_> =
                path[start..].iter().chain([&path[start]]).map(|it| format!("`{it}`")).collect();
            let message = format!("these stages need each other in a circle: {}", circle.join(" → "));
            return Err(Error::usage(message).hint("a stage cannot read what is made from its own output"));
        }
        path.push(name.to_owned());
        needs[name].iter().try_for_each(|it| visit(it, needs, path, order))?;
        path.pop();
        order.push(name.to_owned());
        Ok(())
    }
    let mut order = Vec::new();
    needs.keys().try_for_each(|it| visit(it, needs, &mut Vec::new(), &mut order))?;
    // A stage reads what it needs against the arrows: reverse edges are "needs", so this order is right.
    Ok(order)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::path::RepoPath;

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
