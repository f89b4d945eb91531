//! The ten laws that mlx keeps, each with the tests that hold it. A listed test that is gone is an error
//! here, so that none is renamed or removed without a look at its law.

use std::{collections::BTreeSet, fs, path::Path};

/// A law in one sentence, and the names of the tests that fail if it is broken.
const LAWS: [(&str, &[&str]); 10] = [
    (
        "A record is never false: a run whose inputs changed meanwhile is not recorded",
        &[
            "an_input_that_changes_during_the_run_is_never_recorded",
            "every_change_of_a_value_reruns_the_stage_and_is_named",
            "each_command_of_a_list_must_succeed",
            "no_command_of_a_list_hides_the_next_ones",
            "an_invalid_pipeline_is_refused_before_any_stage_runs",
        ],
    ),
    (
        "Plans need digests, not data: absent data is neither changed nor deleted",
        &[
            "a_dry_run_needs_no_data",
            "diff_fetches_trees_and_no_data",
            "absent_data_is_neither_clean_nor_changed",
            "an_absent_output_of_another_folder_counts_by_its_record",
        ],
    ),
    (
        "Bytes that are stored nowhere are never removed or overwritten without `--force`",
        &[
            "checkout_refuses_to_overwrite_unstored_changes",
            "files_are_deleted_only_if_the_store_has_them",
            "remove_with_data_refuses_to_delete_unstored_files",
            "an_output_changed_by_hand_is_kept_before_it_is_restored",
            "a_partial_output_of_a_killed_stage_is_moved_away",
            "restore_never_overwrites_what_is_not_stored",
            "every_object_that_a_commit_refers_to_is_kept",
            "repro_survives_every_fault",
            "a_restoring_repro_survives_every_fault",
        ],
    ),
    (
        "Registry events are immutable: tags never move, and order comes from their chain",
        &[
            "a_replaced_version_tag_is_detected",
            "edits_gaps_reordering_and_truncation_of_the_chain_are_detected",
            "a_rewritten_remote_chain_is_detected_by_clones_that_saw_it",
            "concurrent_approvals_are_all_recorded_in_order",
            "a_tag_counts_only_if_its_event_has_the_same_contents",
        ],
    ),
    (
        "Same inputs, same bytes, whatever the machine, locale, time zone, umask or thread count",
        &[
            "the_same_content_gives_the_same_bytes_in_every_environment",
            "the_result_does_not_depend_on_the_number_of_threads",
            "the_digest_of_the_first_format_version_is_stable",
            "late_records_are_reported_and_clones_make_the_same_report",
        ],
    ),
    (
        "A stage record outlives an upgrade: stages start the running mlx, changed built-ins run again",
        &[
            "a_stage_run_by_another_version_of_mlx_runs_again",
            "a_stage_finds_the_running_mlx_and_every_other_program_by_the_users_path",
        ],
    ),
    (
        "Changes are made against the base: a file that was never here is never dropped",
        &[
            "a_file_that_was_never_here_stays_recorded",
            "files_that_two_clones_add_to_a_folder_are_both_recorded",
            "a_file_that_both_sides_changed_is_a_conflict",
            "without_a_base_nothing_counts_as_deleted",
            "without_a_base_every_recorded_file_stays",
        ],
    ),
    (
        "Stat and digest: an input is unchanged only if both are",
        &[
            "an_input_that_changes_during_the_run_is_never_recorded",
            "an_input_that_changed_and_changed_back_is_not_recorded",
            "params_files_and_names_in_folders_that_come_and_go_count",
            "a_folder_that_another_takes_the_place_of_is_not_recorded",
            "another_name_for_an_input_is_no_change_of_it",
            "status_detects_an_edit_that_keeps_size_inode_and_mtime",
            "files_changed_within_a_clock_tick_are_not_cached",
        ],
    ),
    (
        "One graph: all pipelines of a repository, checked alike by plan, dry run and run",
        &[
            "stages_of_several_folders_form_one_graph",
            "a_stage_brings_what_it_needs_from_another_folder_up_to_date",
            "pipelines_of_nested_repositories_are_not_part_of_the_graph",
            "a_cycle_stops_only_the_stages_that_need_it",
            "a_link_to_the_output_of_another_stage_is_an_edge_of_the_graph",
        ],
    ),
    (
        "Evidence names its subject: a number counts for the model and version that it was measured on",
        &[
            "a_low_or_missing_number_closes_its_gate",
            "impossible_numbers_make_a_report_invalid",
            "each_version_has_its_own_accuracy",
            "a_version_without_traffic_on_the_day_is_not_rolled_back",
        ],
    ),
];

/// Returns the names of all functions under `#[test]` in a folder of sources.
fn tests_in(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.unwrap();
        if entry.path().extension().is_none_or(|it| it != "rs") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            let name = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
            match name {
                Some(name) if is_test => drop(names.insert(name.to_owned())),
                _ => {}
            }
            is_test = line == "#[test]" || is_test && line.starts_with("#[");
        }
    }
    names
}

#[test]
fn every_law_has_tests_and_all_of_them_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let there: BTreeSet<String> =
        ["src", "tests"].iter().flat_map(|name| tests_in(&root.join(name))).collect();
    assert!(there.len() > 500 && there.contains("every_law_has_tests_and_all_of_them_are_there"));
    assert!(!there.contains("tests_in"), "a function without `#[test]` is not a test");
    for (law, tests) in LAWS {
        assert!(tests.len() > 1, "{law}: one test is not enough");
        let gone: Vec<_> = tests.iter().filter(|name| !there.contains(**name)).collect();
        assert!(gone.is_empty(), "{law}: these tests are gone: {gone:?}");
    }
}
