//! What operations cost by the size of a folder, ten files of which change: `cargo bench --bench change`, with sizes
//! after `--` where others than ten and a hundred thousand are wanted (a million takes some minutes and 5 GB of disk).

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "benchmarks are the user: they write files as users do")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use comfy_table::{Table, presets::NOTHING};

#[path = "../tests/cost.rs"]
mod cost;

const CHANGES: usize = 10;

fn main() {
    let sizes: Vec<usize> = std::env::args().filter_map(|it| it.replace('_', "").parse().ok()).collect();
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
            for (what, cost) in cost::costs(files, CHANGES, flat) {
                let place = if flat { "one folder" } else { "folders of 1000" };
                table.add_row([
                    what.to_owned(),
                    format!("{files} in {place}"),
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
