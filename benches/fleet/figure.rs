//! What is measured, and the table of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// Which way a figure should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What can be measured: a column of the table that a row fills.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// What is measured, for people; names the figure in JSON, so it stays.
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// What it is to be at least, or at most.
    pub(crate) demand: Option<f64>,
    /// By which part of the old value it may be worse before that counts as a regression. Figures without one are shown
    /// and not judged: they say more of the machine and its other users than of us.
    pub(crate) tolerance: Option<f64>,
}

impl Gauge {
    /// Something that is shown and not judged.
    pub(crate) const fn shown(name: &'static str, unit: &'static str, better: Better) -> Self {
        Self { name, unit, better, demand: None, tolerance: None }
    }

    /// Something that was divided by a baseline of the same round, or does not depend on the machine's speed.
    pub(crate) const fn judged(
        name: &'static str,
        unit: &'static str,
        better: Better,
        tolerance: f64,
    ) -> Self {
        Self { name, unit, better, demand: None, tolerance: Some(tolerance) }
    }

    /// With what it is to reach.
    pub(crate) const fn demand(self, demand: f64) -> Self {
        Self { demand: Some(demand), ..self }
    }
}

/// What was measured of one gauge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) demand: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tolerance: Option<f64>,
    /// The one that counts.
    pub(crate) median: f64,
    /// One of each round.
    pub(crate) rounds: Vec<f64>,
}

impl Figure {
    /// Whether it is what is demanded, if something is.
    fn meets(&self) -> Option<bool> {
        self.demand.map(|demand| match self.better {
            Better::Higher => self.median >= demand,
            Better::Lower => self.median <= demand,
        })
    }
}

/// Everything that was measured in one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) scale: String,
    /// The share of all processors that others used meanwhile.
    pub(crate) others: f64,
    pub(crate) figures: Vec<Figure>,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(machine: Machine, scale: &str) -> Self {
        Self { machine, scale: scale.into(), others: 0.0, figures: Vec::new() }
    }

    /// Writes down what a round measured.
    pub(crate) fn add(&mut self, gauge: &Gauge, value: f64) {
        eprintln!("  {:<44} {:>12} {}", gauge.name, number(value), gauge.unit);
        let Gauge { name, unit, better, demand, tolerance } = *gauge;
        let known = self.figures.iter().position(|figure| figure.name == name);
        let place = known.unwrap_or_else(|| {
            let (name, unit) = (name.into(), unit.into());
            self.figures.push(Figure { name, unit, better, demand, tolerance, median: 0.0, rounds: vec![] });
            self.figures.len() - 1
        });
        let figure = &mut self.figures[place];
        figure.rounds.push(value);
        figure.median = quantile(&figure.rounds, 0.5);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let others = self.others * 100.0;
        writeln!(f, "{} run; other programs used {others:.0} % of the processors meanwhile\n", self.scale)?;
        let header = ["figure", "median", "unit", "min … max", "rounds", "demanded", ""];
        let [name, median, unit, range, rounds, demand, met] = header;
        writeln!(f, "{name:<44} {median:>10} {unit:<12} {range:>21} {rounds:>6} {demand:>9} {met}")?;
        for figure in &self.figures {
            let Figure { name, unit, better, demand, median, rounds, .. } = figure;
            let edge = |quantile_of| number(quantile(rounds, quantile_of));
            let range = format!("{} … {}", edge(0.0), edge(1.0));
            let sign = if *better == Better::Higher { '≥' } else { '≤' };
            let demand = demand.map_or(String::new(), |demand| format!("{sign} {}", number(demand)));
            let met = figure.meets().map_or("", |met| if met { "ok" } else { "MISSED" });
            let (median, count) = (number(*median), rounds.len());
            writeln!(f, "{name:<44} {median:>10} {unit:<12} {range:>21} {count:>6} {demand:>9} {met}")?;
        }
        Ok(())
    }
}

/// The value below which that part of all values lies. Of none: not a number.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = part * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
}

/// Three or more digits, as people write them.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        100_000.0.. => format!("{:.0}k", value / 1000.0),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
