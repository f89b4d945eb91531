//! The one dependency graph of all stages of a repository: a stable topological order, and the faults that
//! keep single stages from running (cycles, outputs that overlap, inputs made by a broken pipeline).
//!
//! A fault stops only the stages it is about and those that need them; every other stage can run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    error::{Error, Kind},
    path::RepoPath,
    pipeline::Stage,
};

/// Name of a stage in the repository: the folder of its `mlx.toml` and its name there. Written
/// `folder:stage`, and plain for a pipeline at the top.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StageId {
    pub folder: RepoPath,
    pub name: String,
}

impl StageId {
    pub fn new(folder: &RepoPath, name: &str) -> Self {
        Self { folder: folder.clone(), name: name.to_owned() }
    }
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.folder.is_root() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}:{}", self.folder, self.name)
        }
    }
}

/// Reason why a stage cannot run, known before any stage runs. An error that can be reported many times.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

impl Fault {
    fn usage(message: String, hint: &str) -> Self {
        Self { kind: Kind::Usage, message, hint: Some(hint.to_owned()) }
    }

    /// Copies an error.
    pub fn of(error: &Error) -> Self {
        let hint = error.hint_text().map(str::to_owned);
        Self { kind: error.kind(), message: error.chain_text(), hint }
    }

    pub fn error(&self) -> Error {
        let error = Error::new(self.kind, &self.message);
        match &self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Stages sorted so that each comes after the stages it needs; within a cycle the order is arbitrary.
#[derive(Debug, Default)]
pub struct Graph {
    pub order: Vec<StageId>,
    /// Stage → the stages whose outputs it reads.
    pub needs: BTreeMap<StageId, BTreeSet<StageId>>,
    /// Stages that cannot run. Those that need them are not listed.
    pub faults: BTreeMap<StageId, Fault>,
    outputs: BTreeMap<RepoPath, StageId>,
}

impl Graph {
    /// Builds the graph of all stages. `unavailable` holds paths made by pipelines that cannot be read, each
    /// with the fault of a stage that reads it.
    pub fn new(stages: &BTreeMap<StageId, &Stage>, unavailable: &[(RepoPath, Fault)]) -> Self {
        let mut graph = Self::default();
        graph.add_outputs(stages);
        let unavailable: BTreeMap<_, _> =
            unavailable.iter().map(|(path, fault)| (path.clone(), fault)).collect();
        for (id, stage) in stages {
            let params = stage.params.iter().map(|it| &it.0);
            let reads: Vec<_> = stage.dependencies.iter().chain(params).collect();
            let needs = reads.iter().flat_map(|path| overlapping(&graph.outputs, path)).cloned().collect();
            graph.needs.insert(id.clone(), needs);
            if let Some(fault) = reads.iter().flat_map(|path| overlapping(&unavailable, path)).next() {
                graph.faults.entry(id.clone()).or_insert_with(|| (*fault).clone());
            }
        }
        graph.sort();
        graph
    }

    /// Collects every output with its stage; overlapping outputs are a fault of both stages. There may be a
    /// hundred thousand outputs, so each is looked up by its ancestors instead of compared with every other.
    fn add_outputs(&mut self, stages: &BTreeMap<StageId, &Stage>) {
        let outputs =
            stages.iter().flat_map(|(id, stage)| stage.outputs.iter().map(move |out| (id, &out.path)));
        for (id, path) in outputs {
            if let Some(other) = self.outputs.get(path) {
                let message = format!("`{path}` is an output of both `{other}` and `{id}`");
                let fault = Fault::usage(message, "each path can be the output of one stage only");
                self.faults.entry(other.clone()).or_insert_with(|| fault.clone());
                self.faults.entry(id.clone()).or_insert(fault);
            } else {
                self.outputs.insert(path.clone(), id.clone());
            }
        }
        for (path, id) in &self.outputs {
            let above = path.ancestors().skip(1).find_map(|it| self.outputs.get_key_value(&it));
            if let Some((outer, other)) = above {
                let message =
                    format!("the output `{path}` of `{id}` is inside the output `{outer}` of `{other}`");
                let fault = Fault::usage(message, "give each a path of its own");
                self.faults.entry(other.clone()).or_insert_with(|| fault.clone());
                self.faults.entry(id.clone()).or_insert(fault);
            }
        }
    }

    /// Returns these stages and all they need, in order.
    pub fn upstream_of(&self, ids: &[StageId]) -> Vec<StageId> {
        let mut wanted = BTreeSet::new();
        let mut pending: Vec<&StageId> = ids.iter().collect();
        while let Some(id) = pending.pop() {
            if wanted.insert(id) {
                pending.extend(self.needs.get(id).into_iter().flatten());
            }
        }
        self.order.iter().filter(|id| wanted.contains(id)).cloned().collect()
    }

    /// Returns the stages that need one of these, directly or through others, without these themselves.
    pub fn downstream_of<'i>(&self, ids: impl IntoIterator<Item = &'i StageId>) -> BTreeSet<StageId> {
        let mut readers: BTreeMap<&StageId, Vec<&StageId>> = BTreeMap::new();
        for (id, needs) in &self.needs {
            needs.iter().for_each(|need| readers.entry(need).or_default().push(id));
        }
        let start: BTreeSet<&StageId> = ids.into_iter().collect();
        let mut pending: Vec<&StageId> = start.iter().copied().collect();
        let mut found = BTreeSet::new();
        while let Some(id) = pending.pop() {
            let next = readers.get(id).into_iter().flatten().copied();
            pending.extend(next.filter(|reader| !start.contains(reader) && found.insert((*reader).clone())));
        }
        found
    }

    /// Returns true if a stage makes `path`, something in it, or a folder around it.
    pub fn makes(&self, path: &RepoPath) -> bool {
        overlapping(&self.outputs, path).next().is_some()
    }

    /// Sorts depth first, in the order of ids, so that the result is deterministic. Iterative, since a chain
    /// of stages may be deeper than the call stack.
    fn sort(&mut self) {
        let mut done = BTreeSet::new();
        let mut cycles = Vec::new();
        for start in self.needs.keys() {
            if done.contains(start) {
                continue;
            }
            // The current path: each stage with the stages it needs that were not visited yet.
            let mut path = vec![(start, self.needs[start].iter())];
            let mut on_path = BTreeSet::from([start]);
            while let Some((id, rest)) = path.last_mut() {
                match rest.next() {
                    Some(next) if done.contains(next) => {}
                    Some(next) if on_path.contains(next) => {
                        let first = path.iter().position(|step| step.0 == next).unwrap_or(0);
                        cycles.push(path[first..].iter().map(|step| step.0.clone()).collect::<Vec<_>>());
                    }
                    Some(next) => {
                        on_path.insert(next);
                        path.push((next, self.needs[next].iter()));
                    }
                    None => {
                        let id = *id;
                        on_path.remove(id);
                        done.insert(id);
                        self.order.push(id.clone());
                        path.pop();
                    }
                }
            }
        }
        for cycle in cycles {
            let names: Vec<_> = cycle.iter().chain(cycle.first()).map(|id| format!("`{id}`")).collect();
            let message = format!("these stages form a cycle: {}", names.join(" → "));
            let fault = Fault::usage(message, "a stage cannot depend on its own output");
            for id in cycle {
                self.faults.entry(id).or_insert_with(|| fault.clone());
            }
        }
    }
}

/// Returns the values of the paths inside `path`, and that of the one that contains it.
fn overlapping<'o, T>(
    outputs: &'o BTreeMap<RepoPath, T>,
    path: &RepoPath,
) -> impl Iterator<Item = &'o T> + use<'o, T> {
    let above = path.ancestors().skip(1).find_map(|it| outputs.get(&it));
    let following = outputs.range::<RepoPath, _>(path..);
    let path = path.clone();
    let prefix = path.clone();
    let same_prefix = following.take_while(move |(output, _)| output.bytes().starts_with(prefix.bytes()));
    let within = same_prefix.filter(move |(output, _)| output.is_within(&path));
    above.into_iter().chain(within.map(|(_, value)| value))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pipeline::Manifest;

    /// Builds the graph of manifests in folders.
    fn graph_of(manifests: &[(&str, &str)]) -> Graph {
        let mut all = Vec::new();
        for (folder, text) in manifests {
            let folder =
                if folder.is_empty() { RepoPath::root() } else { RepoPath::from_text(folder).unwrap() };
            let file = folder.join(b"mlx.toml").unwrap();
            all.push((folder, Manifest::parse(&file, text.as_bytes(), Path::new("/r")).unwrap()));
        }
        let stages = all.iter().flat_map(|(folder, manifest)| {
            manifest.stages.iter().map(move |(name, stage)| (StageId::new(folder, name), stage))
        });
        Graph::new(&stages.collect(), &[])
    }

    fn graph(text: &str) -> Graph {
        graph_of(&[("", text)])
    }

    fn texts<'i>(ids: impl IntoIterator<Item = &'i StageId>) -> Vec<String> {
        ids.into_iter().map(StageId::to_string).collect()
    }

    fn top(name: &str) -> StageId {
        StageId::new(&RepoPath::root(), name)
    }

    #[test]
    fn a_stage_comes_after_what_it_needs() {
        let graph =
            graph("[stage.a]\ncmd='x'\ndeps=['c']\n[stage.b]\ncmd='x'\nouts=['c']\n[stage.z]\ncmd='x'\n");
        assert_eq!(texts(&graph.order), ["b", "a", "z"]);
        assert_eq!(texts(&graph.upstream_of(&[top("a")])), ["b", "a"]);
        assert_eq!(texts(&graph.downstream_of([&top("b")])), ["a"]);
    }

    #[test]
    fn stages_of_several_folders_form_one_graph() {
        let graph = graph_of(&[
            ("", "[stage.d]\ncmd='x'\ndeps=['up/o']\nouts=['final']\n"),
            ("up", "[stage.u]\ncmd='x'\nouts=['o']\n[stage.d]\ncmd='x'\ndeps=['../final']\n"),
        ]);
        assert_eq!(texts(&graph.order), ["up:u", "d", "up:d"]);
        assert_eq!(texts(&graph.upstream_of(&[top("d")])), ["up:u", "d"]);
    }

    #[test]
    fn a_hundred_thousand_stages_in_a_row_are_sorted() {
        let stage = |at: u32| format!("[stage.s{at}]\ncmd='x'\ndeps=['o{}']\nouts=['o{at}']\n", at + 1);
        let text: String = (0..100_000).map(stage).collect();
        let order = graph(&text).order;
        assert_eq!((order.len(), &order[0].name[..], &order[99_999].name[..]), (100_000, "s99999", "s0"));
    }

    #[test]
    fn paths_that_only_share_a_prefix_do_not_overlap() {
        let text = "[stage.a]\ncmd='x'\ndeps=['d', 'o/x/y']\n[stage.b]\ncmd='x'\nouts=['d-', 'd/e']\n\
            [stage.c]\ncmd='x'\nouts=['d.e', 'o/x']\n[stage.d]\ncmd='x'\nouts=['o-', 'dd']\n";
        assert_eq!(texts(&graph(text).needs[&top("a")]), ["b", "c"]);
    }

    #[test]
    fn a_cycle_is_a_fault_of_its_stages_alone() {
        let text = "[stage.a]\ncmd='x'\ndeps=['2']\nouts=['1']\n[stage.b]\ncmd='x'\ndeps=['1']\nouts=['2']\n\
            [stage.c]\ncmd='x'\ndeps=['1']\n[stage.free]\ncmd='x'\nouts=['3']\n";
        let found = graph(text);
        let message = found.faults[&top("a")].error().to_string();
        assert_eq!(message, "these stages form a cycle: `a` → `b` → `a`");
        assert_eq!(texts(found.faults.keys()), ["a", "b"]);
        assert_eq!(texts(&found.downstream_of(found.faults.keys())), ["c"]);
        assert_eq!(found.order.len(), 4);
        let own = graph("[stage.a]\ncmd='x'\ndeps=['1']\nouts=['1']\n");
        assert_eq!(own.faults[&top("a")].error().to_string(), "these stages form a cycle: `a` → `a`");
    }

    #[test]
    fn overlapping_outputs_are_a_fault_of_both_stages() {
        let free = "[stage.free]\ncmd='x'\nouts=['f']\n";
        let twice = graph(&format!("{free}[stage.a]\ncmd='x'\nouts=['o']\n[stage.b]\ncmd='x'\nouts=['o']\n"));
        assert_eq!(texts(twice.faults.keys()), ["a", "b"]);
        assert_eq!(twice.faults[&top("b")].error().to_string(), "`o` is an output of both `a` and `b`");
        let inside = graph(&format!(
            "{free}[stage.a]\ncmd='x'\nouts=['o']\n[stage.b]\ncmd='x'\nmetrics=['o/m.json']\n"
        ));
        assert_eq!(texts(inside.faults.keys()), ["a", "b"]);
        let message = inside.faults[&top("a")].error().to_string();
        assert!(message.contains("is inside the output `o` of `a`"), "{message}");
    }

    #[test]
    fn a_stage_that_reads_an_output_of_a_broken_pipeline_has_its_fault() {
        let text = "[stage.a]\ncmd='x'\ndeps=['up']\n[stage.b]\ncmd='x'\n";
        let manifest =
            Manifest::parse(&RepoPath::from_text("mlx.toml").unwrap(), text.as_bytes(), Path::new("/r"))
                .unwrap();
        let stages = manifest.stages.iter().map(|(name, stage)| (top(name), stage)).collect();
        let fault = Fault::of(&Error::usage("broken"));
        let graph = Graph::new(&stages, &[(RepoPath::from_text("up/o").unwrap(), fault)]);
        assert_eq!(texts(graph.faults.keys()), ["a"]);
    }
}
