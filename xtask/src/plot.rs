//! Draws the plot of `cargo xtask bench`: curves over the number of tasks, as SVG.
//!
//! Both axes are logarithmic. The name of each curve is at its right end, and is moved up or down
//! if it would overlap another one.

use std::fmt::Write as _;

/// The cost of one implementation.
pub struct Curve<'a> {
    pub name: &'a str,
    /// Pairs of a number of tasks and nanoseconds, in ascending order.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
/// The area of the curves.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 424.0;
/// The least distance between the names of two curves.
const LINE: f64 = 18.0;

/// The colours of other runtimes' curves. They differ for colour-blind readers too, and are legible
/// on the background.
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#b3589a", "#a07800", "#3fa0dd", "#7a5230"];
const OURS: &str = "#c1121f";
const FLOOR: &str = "#6b7280";
const INK: &str = "#1f2933";
const FAINT: &str = "#5b6670";
const GRID: &str = "#e4e7eb";

const SUBTITLE: &str =
    "nanoseconds, one core, by the number of tasks that are ready (both axes logarithmic)";

/// Draws the plot.
pub fn svg(curves: &[Curve<'_>]) -> String {
    let values = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let most = |of: fn((f64, f64)) -> f64| values().map(of).fold(f64::MIN, f64::max);
    let least = values().map(|point| point.1).fold(f64::MAX, f64::min);
    let x = Scale { from: 1.0, to: most(|point| point.0).max(10.0), low: LEFT, high: RIGHT };
    let y = Scale { from: least * 0.85, to: most(|point| point.1) * 1.15, low: BOTTOM, high: TOP };

    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"
    width="{WIDTH}" height="{HEIGHT}" font-size="13" fill="{INK}"
    font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif">
<title>What a yield costs</title>
<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="white"/>
<text x="24" y="32" font-size="17" font-weight="600">What a yield costs</text>
<text x="24" y="52" fill="{FAINT}">{SUBTITLE}</text>
"#
    );
    let mut add = |line: String| _ = writeln!(svg, "{line}");
    for tick in y.ticks(&[1.0, 2.0, 5.0]) {
        let (at, label) = (y.at(tick), count(tick as u64));
        add(format!(r#"<path d="M{LEFT} {at:.1}H{RIGHT}" stroke="{GRID}"/>"#));
        add(format!(
            r#"<text x="{}" y="{:.1}" text-anchor="end" fill="{FAINT}">{label}</text>"#,
            LEFT - 10.0,
            at + 4.5
        ));
    }
    for tick in x.ticks(&[1.0]) {
        let (at, label) = (x.at(tick), count(tick as u64));
        add(format!(r#"<path d="M{at:.1} {BOTTOM}v5" stroke="{FAINT}"/>"#));
        add(format!(
            r#"<text x="{at:.1}" y="{}" text-anchor="middle" fill="{FAINT}">{label}</text>"#,
            BOTTOM + 22.0
        ));
    }
    add(format!(r#"<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="{FAINT}"/>"#));
    add(format!(
        r#"<text x="{}" y="{}" text-anchor="middle" fill="{FAINT}">tasks</text>"#,
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 42.0
    ));

    let styles = styles(curves);
    let ends: Vec<_> =
        curves.iter().map(|curve| y.at(curve.points.last().map_or(1.0, |end| end.1))).collect();
    let names = apart(&ends);
    // Trapline's is drawn last, on top of the others.
    let mut order: Vec<_> = (0..curves.len()).collect();
    order.sort_by_key(|&index| styles[index].colour == OURS);
    for index in order {
        let (curve, Style { colour, width, dash }) = (&curves[index], &styles[index]);
        let points: Vec<_> = curve
            .points
            .iter()
            .map(|&(tasks, ns)| format!("{:.1},{:.1}", x.at(tasks), y.at(ns)))
            .collect();
        add(format!(
            concat!(
                r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" "#,
                r#"stroke-dasharray="{}" stroke-linejoin="round" stroke-linecap="round"/>"#
            ),
            points.join(" "),
            colour,
            width,
            dash
        ));
        let (end, name) = (ends[index], names[index]);
        add(format!(
            r#"<path d="M{:.1} {end:.1}L{:.1} {name:.1}" stroke="{colour}" stroke-opacity="0.5"/>"#,
            RIGHT + 4.0,
            RIGHT + 18.0
        ));
        let weight = if *colour == OURS { 700 } else { 500 };
        add(format!(
            r#"<text x="{:.1}" y="{:.1}" fill="{colour}" font-weight="{weight}">{}</text>"#,
            RIGHT + 22.0,
            name + 4.5,
            curve.name
        ));
    }
    svg + "</svg>\n"
}

/// The line style of a curve.
struct Style {
    colour: &'static str,
    width: f64,
    dash: &'static str,
}

fn styles(curves: &[Curve<'_>]) -> Vec<Style> {
    let mut colours = COLOURS.into_iter().cycle();
    let style = |curve: &Curve<'_>| match curve.name {
        name if name.starts_with("trapline") => Style { colour: OURS, width: 3.5, dash: "none" },
        name if name.starts_with("floor") => Style { colour: FLOOR, width: 2.0, dash: "5 5" },
        _ => Style { colour: colours.next().unwrap_or(INK), width: 2.0, dash: "none" },
    };
    curves.iter().map(style).collect()
}

/// A logarithmic axis.
struct Scale {
    from: f64,
    to: f64,
    /// The coordinate of `from`.
    low: f64,
    /// The coordinate of `to`.
    high: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let part = (value / self.from).ln() / (self.to / self.from).ln();
        self.low + (self.high - self.low) * part
    }

    /// The values in its range that are a power of ten times one of `times`.
    fn ticks(&self, times: &[f64]) -> Vec<f64> {
        let all = (0..10).flat_map(|power| times.iter().map(move |t| t * 10_f64.powi(power)));
        all.filter(|&tick| (self.from * 0.999..=self.to * 1.001).contains(&tick)).collect()
    }
}

/// Moves the `wanted` places apart, as little as possible and in the same order, until they are
/// `LINE` apart.
fn apart(wanted: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..wanted.len()).collect();
    order.sort_by(|&one, &other| wanted[one].total_cmp(&wanted[other]));
    // Groups of adjacent names: the sum of the wanted places less the offsets of the members, and
    // the number of members.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    let top = |&(sum, members): &(f64, usize)| sum / members as f64;
    for &index in &order {
        let mut group = (wanted[index], 1);
        while let Some(before) = groups.last() {
            let offset = before.1 as f64 * LINE;
            if top(before) + offset <= top(&group) {
                break;
            }
            group = (before.0 + group.0 - offset * group.1 as f64, before.1 + group.1);
            groups.pop();
        }
        groups.push(group);
    }
    let mut places = vec![0.0; wanted.len()];
    let mut order = order.into_iter();
    for group in &groups {
        for (member, index) in order.by_ref().take(group.1).enumerate() {
            places[index] = top(group) + member as f64 * LINE;
        }
    }
    places
}

/// Formats a number with a narrow blank between groups of three digits.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_overlap_and_keep_their_order() {
        let wanted = [100.0, 101.0, 300.0, 99.0, 135.0];
        let places = apart(&wanted);
        let mut sorted = places.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|two| two[1] - two[0] >= LINE - 1e-9), "{places:?}");
        // They keep the order of the wanted places, and a name without neighbours is not moved.
        assert_eq!(sorted, [3, 0, 1, 4, 2].map(|index| places[index]));
        assert_eq!(places[2], 300.0);
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(
            [0, 1, 100, 1000, 10_000, 1_000_000].map(count),
            ["0", "1", "100", "1 000", "10 000", "1 000 000"]
        );
    }

    #[test]
    fn each_curve_is_drawn_and_named_inside_of_the_picture() {
        let curve = |name, ns: f64| Curve { name, points: vec![(1.0, ns), (1e6, 2.0 * ns)] };
        let svg = svg(&[curve("trapline", 7.0), curve("tokio", 7.1), curve("futures", 90.0)]);
        assert_eq!(svg.matches("<polyline").count(), 3);
        for name in ["trapline", "tokio", "futures"] {
            assert_eq!(svg.matches(&format!(">{name}</text>")).count(), 1);
        }
        let places = svg.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for point in places.flat_map(str::split_whitespace) {
            let (x, y) = point.split_once(',').unwrap();
            assert!((LEFT..=RIGHT).contains(&x.parse().unwrap()), "{point}");
            assert!((TOP..=BOTTOM).contains(&y.parse().unwrap()), "{point}");
        }
    }
}
