//! Failures of the stages of one run, each of which is reported once: as it happens if the run goes on after
//! it, or else at the end.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Kind},
    path::quoted_list,
    pipeline::{Outcome, StageId, StageRun},
    progress::Progress,
};

/// Failed stages with their errors, and other problems that the run found.
pub struct Failures<'p> {
    progress: &'p dyn Progress,
    /// True if errors of stages are reported as they happen.
    at_once: bool,
    stages: Vec<StageId>,
    kind: Option<Kind>,
    /// Errors that were not reported yet.
    unreported: Vec<Error>,
    /// Texts of all errors: several stages may fail for one reason.
    known: BTreeSet<String>,
}

impl<'p> Failures<'p> {
    pub fn new(progress: &'p dyn Progress, at_once: bool) -> Self {
        let (stages, unreported, known) = Default::default();
        Self { progress, at_once, stages, kind: None, unreported, known }
    }

    /// Adds the failure of a stage, and returns its row of the run.
    pub fn add(&mut self, id: StageId, error: Error) -> StageRun {
        let reasons = [Some(error.chain_text()), error.hint_text().map(str::to_owned)];
        self.kind.get_or_insert(error.kind());
        self.stages.push(id.clone());
        if !self.at_once {
            self.add_problem(error);
        } else if self.known.insert(error.chain_text()) {
            self.progress.fail(&error);
        }
        StageRun { id, outcome: Outcome::Failed, reasons: reasons.into_iter().flatten().collect() }
    }

    /// Adds an error that is not of a stage.
    pub fn add_problem(&mut self, error: Error) {
        if self.known.insert(error.chain_text()) {
            self.unreported.push(error);
        }
    }

    /// Returns the error that ends the run: the only one, or the names of failed stages. Reports the rest.
    pub fn end(self) -> Option<Error> {
        let mut errors = self.unreported.into_iter();
        let is_only = !self.at_once && errors.len() == 1 || self.stages.is_empty();
        let only = if is_only { errors.next() } else { None };
        errors.for_each(|error| self.progress.fail(&error));
        only.or_else(|| {
            let (noun, names) = (if self.stages.len() == 1 { "stage" } else { "stages" }, &self.stages);
            let message = format!("{} {noun} failed: {}", names.len(), quoted_list(names));
            let hint = "`mlx repro` runs them again, and those that need them";
            Some(Error::new(self.kind?, message).hint(hint))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{path::RepoPath, progress::Event};

    #[derive(Default)]
    struct Reported(Mutex<Vec<String>>);

    impl Progress for Reported {
        fn event(&self, event: Event<'_>) {
            if let Event::Failed { error } = event {
                self.0.lock().unwrap().push(error.to_string());
            }
        }
    }

    /// Returns the errors that are reported before the last one, and the last one.
    fn reported(at_once: bool, stages: &[(&str, &str)], problem: Option<&str>) -> (String, Option<String>) {
        let progress = Reported::default();
        let mut failures = Failures::new(&progress, at_once);
        for (stage, error) in stages {
            failures.add(StageId::new(&RepoPath::root(), stage), Error::usage(*error));
        }
        problem.into_iter().for_each(|error| failures.add_problem(Error::corrupt(error)));
        let last = failures.end().map(|error| error.to_string());
        (progress.0.into_inner().unwrap().join(", "), last)
    }

    #[test]
    fn every_error_is_reported_once() {
        let two = [("a", "x"), ("b", "y")];
        let last = |text: &str| Some(text.to_owned());
        assert_eq!(reported(false, &[], None), (String::new(), None));
        assert_eq!(reported(false, &two[..1], None), (String::new(), last("x")));
        assert_eq!(reported(false, &two, None), ("x, y".into(), last("2 stages failed: `a`, `b`")));
        assert_eq!(reported(false, &[("a", "x"), ("b", "x")], None), (String::new(), last("x")));
        assert_eq!(reported(false, &[], Some("z")), (String::new(), last("z")));
        assert_eq!(reported(false, &two[..1], Some("z")), ("x, z".into(), last("1 stage failed: `a`")));
        assert_eq!(reported(true, &[], None), (String::new(), None));
        assert_eq!(reported(true, &two[..1], None), ("x".into(), last("1 stage failed: `a`")));
        assert_eq!(reported(true, &two, Some("z")), ("x, y, z".into(), last("2 stages failed: `a`, `b`")));
        assert_eq!(reported(true, &two, Some("y")), ("x, y".into(), last("2 stages failed: `a`, `b`")));
    }
}
