//! Benchmark: what `add`, `status`, `commit`, `diff` and `checkout` cost when ten files of a large folder
//! change. Run `cargo bench --bench change`, with other folder sizes than 10 000 and 100 000 files after `--`
//! (a million files take some minutes and 5 GB of disk). `tests/io_counts.rs` measures.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "benchmarks are the user: they write files as users do")]
#![expect(clippy::print_stdout, reason = "the benchmark prints a table")]

use comfy_table::{Table, presets::NOTHING};

#[path = "../tests/io_counts.rs"]
mod io_counts;

const CHANGES: usize = 10;

fn main() {
    let sizes: Vec<usize> = std::env::args().filter_map(|size| size.replace('_', "").parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![10_000, 100_000] } else { sizes };
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "operation",
        "files",
        "hashed",
        "pages read",
        "contents written",
        "pages written",
        "ms",
    ]);
    for flat in [false, true] {
        for &files in &sizes {
            for (operation, cost) in io_counts::measure_all(files, CHANGES, flat) {
                let layout = if flat { "one folder" } else { "folders of 1000" };
                table.add_row([
                    operation.to_owned(),
                    format!("{files} in {layout}"),
                    cost.files_hashed.to_string(),
                    cost.pages_read.to_string(),
                    cost.contents_written.to_string(),
                    cost.pages_written.to_string(),
                    format!("{:.1}", cost.time.as_secs_f64() * 1000.0),
                ]);
            }
        }
    }
    println!("{table}");
}
