//! `docs/scale.svg`, drawn from what the report says of each stage: a small chart for each figure.

use std::fmt::Write as _;

use serde_json::Value;

/// What is drawn: the key in the report, and how a person calls it.
const CHARTS: [(&str, &str); 6] = [
    ("one_more_route_s", "one more route, s"),
    ("reload_ms", "reload, ms"),
    ("agent_rss_mb", "agent, MiB"),
    ("controller_rss_mb", "controller, MiB"),
    ("hosts_file_kb", "gateway's hosts file, KiB"),
    ("status_s", "xregion status, s"),
];
const COLUMNS: usize = 3;
/// The size of a chart, and of the part of it that has the curve: left, top, width and height.
const CHART: (f64, f64) = (240.0, 170.0);
const CURVE: (f64, f64, f64, f64) = (34.0, 40.0, 180.0, 90.0);
const STYLE: &str = "text{font:12px sans-serif;fill:#24292f}.n{font-size:10px;fill:#57606a}.a{stroke:#d0d7de}\
                     polyline{fill:none;stroke:#0969da;stroke-width:2}circle{fill:#0969da}rect{fill:#fff}";

/// The picture of `scale.stages`, of the figures that are there.
pub fn draw(stages: &[Value]) -> String {
    let rows = CHARTS.len().div_ceil(COLUMNS);
    let (width, height) = (CHART.0 * COLUMNS as f64, CHART.1 * rows as f64 + 20.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
         aria-label=\"figures by the number of routes in a region\">\n<style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\"/>\n"
    );
    for (number, (key, name)) in CHARTS.into_iter().enumerate() {
        let (column, row) = ((number % COLUMNS) as f64, (number / COLUMNS) as f64);
        // Writing to a String can't fail.
        let _ = writeln!(svg, "<g transform=\"translate({:.0} {:.0})\">", column * CHART.0, row * CHART.1);
        chart(&mut svg, name, &points(stages, key));
        svg.push_str("</g>\n");
    }
    let _ =
        writeln!(svg, "<text class=\"n\" x=\"34\" y=\"{:.0}\">by the number of routes in one region</text>\n</svg>", height - 6.0);
    svg
}

/// Routes and the figure, for each stage that has both.
fn points(stages: &[Value], key: &str) -> Vec<(f64, f64)> {
    stages.iter().filter_map(|stage| Some((stage["routes"].as_f64()?, stage[key].as_f64()?))).collect()
}

/// The number of routes goes up by powers of ten, the figure from zero.
fn chart(svg: &mut String, name: &str, points: &[(f64, f64)]) {
    let (left, top, width, height) = CURVE;
    let _ = writeln!(svg, "<text x=\"{left:.0}\" y=\"22\">{name}</text>");
    let _ = writeln!(svg, "<path class=\"a\" d=\"M{left:.0} {:.0}h{width:.0}\"/>", top + height);
    let scale = |routes: f64| routes.max(1.0).log10();
    let (first, last) = (points.first().map_or(0.0, |point| scale(point.0)), points.last().map_or(1.0, |point| scale(point.0)));
    let most = points.iter().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
    let place = |&(routes, figure): &(f64, f64)| {
        let along = if last > first { (scale(routes) - first) / (last - first) } else { 0.5 };
        (left + along * width, top + (1.0 - figure / most) * height)
    };
    let line: Vec<String> = points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polyline points=\"{}\"/>", line.join(" "));
    for point in points {
        let (x, y) = place(point);
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        let _ =
            writeln!(svg, "<text class=\"n\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", y - 7.0, short(point.1));
        let _ = writeln!(
            svg,
            "<text class=\"n\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            top + height + 14.0,
            point.0
        );
    }
}

/// Two digits and a half.
fn short(figure: f64) -> String {
    let digits = if figure < 10.0 { 2 } else { usize::from(figure < 100.0) };
    format!("{figure:.digits$}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_figure_has_a_point_for_each_stage_that_knows_it() {
        let svg = draw(&[json!({"routes": 10, "status_s": 0.2}), json!({"routes": 1000, "status_s": 4.0, "reload_ms": 120})]);
        assert_eq!((svg.matches("<circle").count(), svg.matches("<polyline").count()), (3, CHARTS.len()));
        assert!(svg.contains(">xregion status, s<") && svg.contains(">4.00<") && svg.contains(">120<") && svg.contains(">1000<"));
    }

    #[test]
    fn the_highest_figure_is_at_the_top_and_zero_at_the_bottom() {
        let mut svg = String::new();
        chart(&mut svg, "x", &[(10.0, 0.0), (1000.0, 5.0)]);
        assert!(svg.contains("points=\"34.0,130.0 214.0,40.0\""), "{svg}");
    }
}
