//! The show without a terminal: one line an event, with its time; and the table at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use super::core::{Show, ms};

/// `[  1.234 s] text`.
pub fn line(at: Duration, text: &str) -> String {
    format!("[{:>7.3} s] {text}", at.as_secs_f64())
}

/// The table of what was measured.
pub fn table(show: &Show) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["What happened", "Pods lost", "Until", "Measured"]);
    for watch in &show.stopwatches {
        let pods = if watch.pods == 0 { "-".to_owned() } else { watch.pods.to_string() };
        let took = watch.took.map_or_else(|| "not reached".to_owned(), ms);
        table.add_row([watch.title.clone(), pods, watch.until.clone(), took]);
    }
    for column in [1, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// What the figures are, and what they are not.
pub const HONESTY: &str = "\
Each figure is one run on this machine: wall clock from just before SIGKILL (or start) to the moment at which a client\n\
of the API saw the result. All nodes are processes of one machine, so there is no network between them, and no disk or\n\
power was lost. `phalanx bench failover` repeats it and gives percentiles.";

#[cfg(test)]
mod tests {
    use super::super::core::Event;
    use super::*;

    #[test]
    fn the_table_says_what_was_not_reached() {
        let mut show = Show::new(3);
        show.apply(Event::Kill { node: "n1".into(), leader: true }, Duration::ZERO);
        show.apply(Event::Written, Duration::from_millis(120));
        let text = table(&show);
        assert!(text.contains("not reached") && text.contains("120 ms") && text.contains("leader n1 killed"), "{text}");
    }

    #[test]
    fn lines_carry_their_time() {
        assert_eq!(line(Duration::from_millis(1234), "x"), "[  1.234 s] x");
    }
}
