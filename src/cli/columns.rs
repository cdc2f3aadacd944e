//! Columns of text, aligned as kubectl aligns them.
//!
//! Pure. A column is as wide as its widest cell and three spaces, at least six (kubectl's tabwriter: minwidth 6,
//! padding 3); the last one is not padded.

/// Spaces between columns.
const PADDING: usize = 3;
/// No column is narrower.
const WIDTH_MIN: usize = 6;

/// Widths that only grow: rows that come later (a watch) stay aligned with those before.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    widths: Vec<usize>,
}

impl Columns {
    /// Makes room for a row.
    pub fn fit<S: AsRef<str>>(&mut self, row: &[S]) {
        for (i, cell) in row.iter().enumerate() {
            let width = (cell.as_ref().chars().count() + PADDING).max(WIDTH_MIN);
            match self.widths.get_mut(i) {
                Some(known) => *known = width.max(*known),
                None => self.widths.push(width),
            }
        }
    }

    /// The row as a line, with its line feed.
    pub fn line<S: AsRef<str>>(&self, row: &[S]) -> String {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let cell = cell.as_ref();
            line.push_str(cell);
            if i + 1 < row.len() {
                let width = self.widths.get(i).copied().unwrap_or_default();
                let pad = width.saturating_sub(cell.chars().count()).max(1);
                line.extend(std::iter::repeat_n(' ', pad));
            }
        }
        line.push('\n');
        line
    }
}

/// All rows, aligned with each other.
pub fn align<S: AsRef<str>>(rows: &[Vec<S>]) -> String {
    let mut columns = Columns::default();
    for row in rows {
        columns.fit(row);
    }
    rows.iter().map(|row| columns.line(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_three_apart_and_the_last_is_not_padded() {
        let rows = vec![vec!["NAME", "STATUS", "AGE"], vec!["default", "Active", "31s"]];
        assert_eq!(align(&rows), "NAME      STATUS   AGE\ndefault   Active   31s\n");
    }

    #[test]
    fn a_short_column_is_six_wide() {
        assert_eq!(align(&[vec!["N", "X"], vec!["a", "b"]]), "N     X\na     b\n");
    }

    #[test]
    fn later_rows_stay_aligned_and_longer_ones_widen() {
        let mut columns = Columns::default();
        columns.fit(&["NAME", "AGE"]);
        columns.fit(&["longer-name", "1s"]);
        assert_eq!(columns.line(&["a", "2s"]), "a             2s\n");
    }
}
