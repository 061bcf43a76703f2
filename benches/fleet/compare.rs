//! Comparison of two runs.

use std::{fmt::Write as _, fs, path::Path};

use crate::{
    BenchResult,
    figure::{BenchReport, Better, Figure, format_number},
};

/// The changes since an older run, and the number of judged figures that are worse beyond their
/// tolerance.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) table: String,
    pub(crate) regressions: usize,
}

/// Reads an older run's JSON.
pub(crate) fn load(path: &Path) -> BenchResult<BenchReport> {
    let with_path = |error: &dyn std::error::Error| format!("{}: {error}", path.display());
    let json = fs::read_to_string(path).map_err(|error| with_path(&error))?;
    Ok(serde_json::from_str(&json).map_err(|error| with_path(&error))?)
}

/// Compares figure by figure. Figures that only one run has are left out, and counted.
pub(crate) fn compare(old: &BenchReport, new: &BenchReport) -> Comparison {
    let mut table = format!("old: {}\n\n", old.machine);
    let (mut regressions, mut alone) = (0, 0);
    for figure in &new.figures {
        let Some(before) = old.figures.iter().find(|before| before.name == figure.name) else {
            alone += 1;
            continue;
        };
        let mark = match (worsening(before, figure), figure.tolerance) {
            (_, None) => "",
            (worse, Some(tolerance)) if worse > tolerance => {
                regressions += 1;
                "WORSE"
            }
            (worse, Some(tolerance)) if worse < -tolerance => "better",
            _ => "same",
        };
        let change = (figure.median / before.median - 1.0) * 100.0;
        let (was, is) = (format_number(before.median), format_number(figure.median));
        let _ = writeln!(
            table,
            "{:<44} {was:>10} → {is:>10} {:<12} {change:>+7.1} % {mark}",
            figure.name, figure.unit
        );
    }
    if alone > 0 {
        let _ = writeln!(table, "{alone} figures are new, or were not measured before");
    }
    if old.scale != new.scale {
        let _ = writeln!(table, "warning: the old run was {}, this one {}", old.scale, new.scale);
    }
    Comparison { table, regressions }
}

/// Returns the fraction of the old value by which the new one is worse; below 0 if it is better.
fn worsening(old: &Figure, new: &Figure) -> f64 {
    match new.better {
        Better::Higher => old.median / new.median - 1.0,
        Better::Lower => new.median / old.median - 1.0,
    }
}
