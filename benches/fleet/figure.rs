//! Figures and the table of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// The direction in which a figure improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// A specification of a figure, which a row of the benchmark measures.
#[derive(Debug)]
pub(crate) struct FigureSpec {
    /// The name for people. It names the figure in JSON, so it must stay.
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// The value that the figure must reach at least, or at most.
    pub(crate) demand: Option<f64>,
    /// The fraction of the old value by which it may be worse before that counts as a regression.
    /// Figures without one are shown and not judged: they depend more on the machine and its other
    /// users than on Gristmill.
    pub(crate) tolerance: Option<f64>,
}

impl FigureSpec {
    /// Specifies a figure that is shown and not judged.
    pub(crate) const fn shown(name: &'static str, unit: &'static str, better: Better) -> Self {
        Self { name, unit, better, demand: None, tolerance: None }
    }

    /// Specifies a figure that is judged: it was divided by a baseline of the same round, or does
    /// not depend on the machine's speed.
    pub(crate) const fn judged(
        name: &'static str,
        unit: &'static str,
        better: Better,
        tolerance: f64,
    ) -> Self {
        Self { name, unit, better, demand: None, tolerance: Some(tolerance) }
    }

    /// Sets the value that it must reach.
    pub(crate) const fn demand(self, demand: f64) -> Self {
        Self { demand: Some(demand), ..self }
    }
}

/// The measured values of one figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) demand: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tolerance: Option<f64>,
    /// The value that counts.
    pub(crate) median: f64,
    /// One value for each round.
    pub(crate) rounds: Vec<f64>,
}

impl Figure {
    /// Returns true if the figure meets its demand; `None` if it has none.
    fn meets_demand(&self) -> Option<bool> {
        self.demand.map(|demand| match self.better {
            Better::Higher => self.median >= demand,
            Better::Lower => self.median <= demand,
        })
    }
}

/// All figures of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BenchReport {
    pub(crate) machine: Machine,
    pub(crate) scale: String,
    /// The share of all processors that other programs used meanwhile.
    pub(crate) others: f64,
    pub(crate) figures: Vec<Figure>,
}

impl BenchReport {
    /// Creates a report without figures.
    pub(crate) fn new(machine: Machine, scale: &str) -> Self {
        Self { machine, scale: scale.into(), others: 0.0, figures: Vec::new() }
    }

    /// Adds the value of a round.
    pub(crate) fn add(&mut self, gauge: &FigureSpec, value: f64) {
        eprintln!("  {:<44} {:>12} {}", gauge.name, format_number(value), gauge.unit);
        let FigureSpec { name, unit, better, demand, tolerance } = *gauge;
        let known = self.figures.iter().position(|figure| figure.name == name);
        let position = known.unwrap_or_else(|| {
            let (name, unit) = (name.into(), unit.into());
            self.figures.push(Figure { name, unit, better, demand, tolerance, median: 0.0, rounds: vec![] });
            self.figures.len() - 1
        });
        let figure = &mut self.figures[position];
        figure.rounds.push(value);
        figure.median = quantile(&figure.rounds, 0.5);
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let others = self.others * 100.0;
        writeln!(f, "{} run; other programs used {others:.0} % of the processors meanwhile\n", self.scale)?;
        let header = ["figure", "median", "unit", "min … max", "rounds", "demanded", ""];
        let [name, median, unit, range, rounds, demand, met] = header;
        writeln!(f, "{name:<44} {median:>10} {unit:<12} {range:>21} {rounds:>6} {demand:>9} {met}")?;
        for figure in &self.figures {
            let Figure { name, unit, better, demand, median, rounds, .. } = figure;
            let edge = |quantile_of| format_number(quantile(rounds, quantile_of));
            let range = format!("{} … {}", edge(0.0), edge(1.0));
            let sign = if *better == Better::Higher { '≥' } else { '≤' };
            let demand = demand.map_or(String::new(), |demand| format!("{sign} {}", format_number(demand)));
            let met = figure.meets_demand().map_or("", |met| if met { "ok" } else { "MISSED" });
            let (median, count) = (format_number(*median), rounds.len());
            writeln!(f, "{name:<44} {median:>10} {unit:<12} {range:>21} {count:>6} {demand:>9} {met}")?;
        }
        Ok(())
    }
}

/// Returns the quantile of the values at `part`, 0 to 1. Not a number if there are no values.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = part * sorted.len().saturating_sub(1) as f64;
    let at = |position: f64| sorted.get(position as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (at(position.floor()), at(position.ceil()));
    below + (above - below) * position.fract()
}

/// Formats a value with three digits or more.
pub(crate) fn format_number(value: f64) -> String {
    match value.abs() {
        100_000.0.. => format!("{:.0}k", value / 1000.0),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
