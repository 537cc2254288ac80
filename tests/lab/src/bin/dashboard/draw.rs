//! Draws the panels of a Grafana dashboard, with what they showed, as one SVG.

use std::fmt::Write as _;

use serde::Deserialize;

/// What of a dashboard's JSON matters for drawing it.
#[derive(Debug, Deserialize)]
pub struct Dashboard {
    pub title: String,
    pub panels: Vec<Panel>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Panel {
    pub title: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    grid_pos: Place,
    pub targets: Vec<Target>,
    field_config: FieldConfig,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Stat,
    Timeseries,
    BarGauge,
}

/// In columns of 24, and rows.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Place {
    x: u16,
    y: u16,
    w: u16,
    h: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    pub expr: String,
    pub legend_format: String,
}

#[derive(Debug, Deserialize)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Defaults {
    unit: Unit,
    decimals: Option<usize>,
    no_value: Option<String>,
    thresholds: Thresholds,
}

#[derive(Debug, Deserialize)]
struct Thresholds {
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    color: String,
    value: Option<f64>,
}

/// Grafana's names of units, those in use.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
enum Unit {
    #[serde(rename = "short")]
    Number,
    #[serde(rename = "bytes")]
    Bytes,
    #[serde(rename = "binBps")]
    BytesPerSecond,
    #[serde(rename = "cps")]
    PerSecond,
    #[serde(rename = "s")]
    Seconds,
}

/// A line of a panel: seconds since 1970, and the value. Of what is asked for one moment there is one point.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// The time shown, in seconds since 1970, and how far points are apart that a line connects.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub start: f64,
    pub end: f64,
    pub step: f64,
}

const COLUMN: f64 = 50.0;
const ROW: f64 = 30.0;
const GAP: f64 = 5.0;
const HEAD: f64 = 44.0;
const FOOT: f64 = 26.0;
const MARGIN: f64 = 10.0;
/// An average letter of the small font.
const LETTER: f64 = 5.9;
const LEGEND_LINE: f64 = 16.0;
const COLORS: [&str; 8] = ["#3274d9", "#e0752d", "#37872d", "#8f3bb8", "#c4162a", "#1f9e9e", "#b8860b", "#6b6b6b"];

/// The whole picture. `answers` has the series of each panel.
pub fn draw(dashboard: &Dashboard, answers: &[Vec<Series>], span: Span, note: &str) -> String {
    let rows = dashboard.panels.iter().map(|panel| panel.grid_pos.y + panel.grid_pos.h).max().unwrap_or_default();
    let (width, height) = (24.0 * COLUMN + 2.0 * MARGIN, HEAD + f64::from(rows) * ROW + FOOT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#444\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#f4f5f5\"/>\n"
    );
    text(&mut svg, (MARGIN + GAP, 29.0), "start", "font-size=\"18\" font-weight=\"bold\" fill=\"#222\"", &dashboard.title);
    for (panel, series) in dashboard.panels.iter().zip(answers) {
        let Place { x, y, w, h } = panel.grid_pos;
        let frame = Frame {
            x: MARGIN + f64::from(x) * COLUMN + GAP,
            y: HEAD + f64::from(y) * ROW + GAP,
            w: f64::from(w) * COLUMN - 2.0 * GAP,
            h: f64::from(h) * ROW - 2.0 * GAP,
        };
        let Frame { x, y, w, h } = frame;
        line(
            &mut svg,
            &format!("<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"3\" fill=\"#fff\" stroke=\"#dcdedf\"/>"),
        );
        text(&mut svg, (x + 10.0, y + 19.0), "start", "font-size=\"13\" font-weight=\"bold\" fill=\"#222\"", &panel.title);
        if series.iter().all(|one| one.points.is_empty()) {
            let empty = panel.field_config.defaults.no_value.as_deref().unwrap_or("No data");
            text(&mut svg, (x + w / 2.0, y + h / 2.0), "middle", "font-size=\"13\"", empty);
            continue;
        }
        match panel.kind {
            Kind::Stat => stat(&mut svg, frame, panel, series),
            Kind::BarGauge => bars(&mut svg, frame, panel, series),
            Kind::Timeseries => lines(&mut svg, frame, panel, series, span),
        }
    }
    text(&mut svg, (MARGIN + GAP, height - 10.0), "start", "", note);
    svg.push_str("</svg>\n");
    svg
}

#[derive(Clone, Copy)]
struct Frame {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

fn line(svg: &mut String, element: &str) {
    svg.push_str(element);
    svg.push('\n');
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, style: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    line(svg, &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{what}</text>"));
}

fn last(series: &Series) -> f64 {
    series.points.last().map_or(0.0, |point| point.1)
}

fn stat(svg: &mut String, frame: Frame, panel: &Panel, series: &[Series]) {
    let Defaults { unit, decimals, thresholds, .. } = &panel.field_config.defaults;
    let width = frame.w / series.len() as f64;
    for (number, one) in series.iter().enumerate() {
        let middle = frame.x + width * (number as f64 + 0.5);
        let value = last(one);
        let passed = thresholds.steps.iter().rev().find(|step| step.value.is_none_or(|from| value >= from));
        let color = match passed.map(|step| step.color.as_str()) {
            Some("red") => "#c4162a",
            Some("orange") => "#e0752d",
            _ => "#37872d",
        };
        let style = format!("font-size=\"25\" font-weight=\"bold\" fill=\"{color}\"");
        text(svg, (middle, frame.y + 66.0), "middle", &style, &unit.show(value, *decimals));
        if series.len() > 1 {
            text(svg, (middle, frame.y + 90.0), "middle", "font-size=\"12\"", &one.name);
        }
    }
}

fn bars(svg: &mut String, frame: Frame, panel: &Panel, series: &[Series]) {
    let Defaults { unit, decimals, .. } = &panel.field_config.defaults;
    let most = series.iter().map(last).fold(f64::MIN_POSITIVE, f64::max);
    let (top, height) = (frame.y + 36.0, (frame.h - 44.0) / series.len().max(1) as f64);
    for (number, one) in series.iter().enumerate() {
        let (y, full) = (top + height * number as f64, frame.w - 100.0);
        text(svg, (frame.x + 12.0, y + 10.0), "start", "", &one.name);
        let bar = (height - 24.0).clamp(6.0, 22.0);
        let (x, y, width) = (frame.x + 12.0, y + 15.0, full * last(one) / most);
        line(svg, &format!("<rect x=\"{x}\" y=\"{y:.1}\" width=\"{full:.1}\" height=\"{bar:.1}\" fill=\"#eceeef\"/>"));
        line(svg, &format!("<rect x=\"{x}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{bar:.1}\" fill=\"{}\"/>", COLORS[0]));
        text(svg, (frame.x + frame.w - 12.0, y + bar / 2.0 + 4.0), "end", "font-weight=\"bold\"", &unit.show(last(one), *decimals));
    }
}

fn lines(svg: &mut String, frame: Frame, panel: &Panel, series: &[Series], span: Span) {
    let unit = panel.field_config.defaults.unit;
    let legend = legend(series, frame.w - 20.0);
    let below = LEGEND_LINE * legend.last().map_or(0.0, |(_, row, _)| *row as f64 + 1.0);
    let plot = Frame { x: frame.x + 66.0, y: frame.y + 34.0, w: frame.w - 80.0, h: frame.h - 34.0 - 24.0 - below };
    let most = series.iter().flat_map(|one| &one.points).map(|point| point.1).fold(0.0, f64::max);
    let step = unit.tick(most);
    let ticks = (most / step).ceil().max(1.0);
    let at = |(time, value): (f64, f64)| {
        let x = plot.x + plot.w * (time - span.start) / (span.end - span.start);
        (x, plot.y + plot.h * (1.0 - value / (step * ticks)))
    };

    for tick in 0..=ticks as u32 {
        let value = step * f64::from(tick);
        let (_, y) = at((span.start, value));
        line(svg, &format!("<path d=\"M{:.1} {y:.1}h{:.1}\" stroke=\"#e7e9ea\"/>", plot.x, plot.w));
        text(svg, (plot.x - 6.0, y + 4.0), "end", "fill=\"#666\"", &unit.show(value, None));
    }
    for minute in 0..=((span.end - span.start) / 60.0) as u32 {
        let (x, y) = at((span.start + 60.0 * f64::from(minute), 0.0));
        line(svg, &format!("<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"#e7e9ea\"/>", plot.y, y + 4.0));
        let label = if minute == 0 { "0 min".to_owned() } else { minute.to_string() };
        text(svg, (x, y + 16.0), "middle", "fill=\"#666\"", &label);
    }

    for (number, (one, (x, row, _))) in series.iter().zip(&legend).enumerate() {
        let color = COLORS[number % COLORS.len()];
        for piece in pieces(&one.points, span.step) {
            let mut path = String::new();
            for (number, point) in piece.iter().enumerate() {
                let (x, y) = at(*point);
                let _ = write!(path, "{}{x:.1} {y:.1}", if number == 0 { 'M' } else { 'L' });
            }
            if let [point] = piece {
                let (x, y) = at(*point);
                line(svg, &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\" fill=\"{color}\"/>"));
            } else {
                line(svg, &format!("<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>"));
            }
        }
        let y = frame.y + frame.h - below + LEGEND_LINE * *row as f64 + 8.0;
        let x = frame.x + 10.0 + x;
        line(svg, &format!("<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"3\" fill=\"{color}\"/>", y - 5.0));
        text(svg, (x + 14.0, y), "start", "", &one.name);
    }
}

/// Where the names of a panel's lines go: from the left, in which line, and how wide they are.
fn legend(series: &[Series], width: f64) -> Vec<(f64, usize, f64)> {
    let mut places: Vec<(f64, usize, f64)> = Vec::new();
    for one in series {
        let needs = 14.0 + LETTER * one.name.chars().count() as f64 + 12.0;
        let place = match places.last() {
            None => (0.0, 0, needs),
            Some((x, row, last)) if x + last + needs <= width => (x + last, *row, needs),
            Some((_, row, _)) => (0.0, row + 1, needs),
        };
        places.push(place);
    }
    places
}

/// A line is broken where there is nothing for longer than a step, or what is no number.
fn pieces(points: &[(f64, f64)], step: f64) -> Vec<&[(f64, f64)]> {
    let numbers = points.split(|point| !point.1.is_finite());
    numbers.flat_map(|run| run.chunk_by(|a, b| b.0 - a.0 < 1.5 * step)).filter(|piece| !piece.is_empty()).collect()
}

impl Unit {
    /// A value with its unit, shortened.
    fn show(self, value: f64, decimals: Option<usize>) -> String {
        let per = if matches!(self, Self::BytesPerSecond | Self::PerSecond) { "/s" } else { "" };
        let (scale, name) = self.scale(value);
        let value = value / scale;
        let number = match decimals {
            Some(decimals) => format!("{value:.decimals$}"),
            // three digits, and no zeros at the end
            None => {
                let decimals = if value.abs() >= 100.0 {
                    0
                } else if value.abs() >= 10.0 {
                    1
                } else {
                    2
                };
                let text = format!("{value:.decimals$}");
                if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
            }
        };
        format!("{number}{}{name}{per}", if name.is_empty() { "" } else { " " })
    }

    /// What a value is told in: its size, and its name.
    fn scale(self, value: f64) -> (f64, &'static str) {
        let fits = |scales: &[(f64, &'static str)]| {
            scales.iter().rev().find(|(scale, _)| value >= *scale).or(scales.first()).copied().unwrap_or((1.0, ""))
        };
        match self {
            Self::Number | Self::PerSecond => fits(&[(1.0, ""), (1e3, "K"), (1e6, "M")]),
            Self::Bytes | Self::BytesPerSecond => {
                fits(&[(1.0, "B"), (1024.0, "KiB"), (1024.0 * 1024.0, "MiB"), (1024.0 * 1024.0 * 1024.0, "GiB")])
            }
            Self::Seconds if value == 0.0 => (1.0, "s"),
            Self::Seconds => fits(&[(1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h")]),
        }
    }

    /// How far the marks of an axis are apart that goes up to `most`: 1, 2 or 5 of something, and about four of them.
    fn tick(self, most: f64) -> f64 {
        let (scale, _) = self.scale(most);
        let rough = (if most > 0.0 { most } else { 1.0 }) / scale / 4.0;
        let ten = 10_f64.powf(rough.log10().floor());
        let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|nice| nice * ten >= rough * 0.999).unwrap_or(10.0) * ten * scale;
        // There is no half of a route.
        if self == Self::Number { nice.max(1.0) } else { nice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_in_their_unit() {
        for (unit, value, told) in [
            (Unit::Number, 0.0, "0"),
            (Unit::Number, 1234.0, "1.23 K"),
            (Unit::Bytes, 900.0, "900 B"),
            (Unit::Bytes, 1536.0, "1.5 KiB"),
            (Unit::BytesPerSecond, 104_857_600.0, "100 MiB/s"),
            (Unit::PerSecond, 0.25, "0.25/s"),
            (Unit::Seconds, 0.0, "0 s"),
            (Unit::Seconds, 0.0005, "500 µs"),
            (Unit::Seconds, 0.03, "30 ms"),
            (Unit::Seconds, 90.0, "1.5 min"),
        ] {
            assert_eq!(unit.show(value, None), told);
        }
        assert_eq!(Unit::Bytes.show(1024.0, Some(1)), "1.0 KiB");
    }

    #[test]
    fn an_axis_has_about_four_round_marks() {
        for (unit, most, tick) in [
            (Unit::Number, 0.0, 1.0),
            (Unit::Number, 3.0, 1.0),
            (Unit::Number, 90.0, 50.0),
            (Unit::PerSecond, 0.9, 0.5),
            (Unit::Bytes, 4.0 * 1024.0, 1024.0),
            (Unit::Seconds, 0.004, 0.001),
        ] {
            assert!((unit.tick(most) - tick).abs() < 1e-9, "{unit:?} to {most}: {}", unit.tick(most));
        }
    }

    #[test]
    fn a_line_is_broken_where_there_is_nothing() {
        let points = [(0.0, 1.0), (2.0, 1.0), (4.0, f64::NAN), (6.0, 1.0), (20.0, 2.0), (22.0, 2.0)];
        assert_eq!(pieces(&points, 2.0), [&points[..2], &points[3..4], &points[4..]]);
    }

    #[test]
    fn names_go_into_as_many_lines_as_they_need() {
        let series = ["short", "short", &"long".repeat(20), "short"].map(|name| Series { name: name.to_owned(), points: vec![] });
        let rows: Vec<usize> = legend(&series, 300.0).iter().map(|(_, row, _)| *row).collect();
        assert_eq!(rows, [0, 0, 1, 2]);
    }

    #[test]
    fn every_panel_is_drawn_and_what_is_told_is_escaped() {
        let panel = |kind: &str, title: &str| {
            serde_json::json!({
                "title": title, "type": kind, "gridPos": {"x": 0, "y": 0, "w": 8, "h": 8}, "targets": [],
                "fieldConfig": {"defaults": {"unit": "s", "noValue": "nothing", "thresholds": {"steps": [{"color": "green", "value": null}]}}},
            })
        };
        let panels = [panel("stat", "one"), panel("timeseries", "two"), panel("bargauge", "three"), panel("stat", "four")];
        let dashboard: Dashboard = serde_json::from_value(serde_json::json!({"title": "a", "panels": panels})).unwrap();
        let series = vec![Series { name: "a<b".into(), points: vec![(0.0, 1.0), (1.0, 2.0)] }];
        let answers = [series.clone(), series.clone(), series, vec![]];
        let svg = draw(&dashboard, &answers, Span { start: 0.0, end: 60.0, step: 1.0 }, "note");
        for told in ["one", "two", "three", "four", "a&lt;b", "2 s", "nothing", "note"] {
            assert!(svg.contains(&format!(">{told}</text>")), "{told} is not in {svg}");
        }
    }
}
