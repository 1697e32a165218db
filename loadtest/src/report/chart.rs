//! Line charts as SVG that takes its colours from the page: plotters draws with stand-in colours, which become CSS variables.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::element::{Circle, PathElement, Text};
use plotters::prelude::{
    ChartBuilder, Color as _, DrawingArea, IntoDrawingArea as _, IntoFont as _, IntoLogRange as _, RGBColor, Ranged,
    SVGBackend,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{ShapeStyle, TextStyle};
use serde::Serialize;

use super::format;

/// plotters places on whole pixels, so charts are drawn this much larger and scaled down by the browser.
const SCALE: u32 = 4;
/// A longer line keeps the highest and the lowest of each of so many stretches.
const STRETCHES: usize = 240;
/// Colours in the style sheet, `--c0` and on.
pub(crate) const COLOURS: usize = 8;

const TEXT: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(1, 2, 4);
const EVENT: RGBColor = RGBColor(1, 2, 5);

/// What a chart's axes measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axes {
    /// Anything over seconds, from zero.
    Time,
    /// Milliseconds over seconds, logarithmic.
    LatencyOverTime,
    /// Milliseconds over nines: `-log10(1 - quantile)`, so that 1 is 90 %, 2 is 99 %.
    Percentiles,
}

/// A curve; where a value is missing it is interrupted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub name: String,
    pub colour: usize,
    /// Drawn paler, beside a full one of the same colour.
    pub pale: bool,
    pub points: Vec<(f64, Option<f64>)>,
}

/// A chart before it is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub title: String,
    pub unit: String,
    pub axes: Axes,
    pub lines: Vec<Line>,
    /// Where the numbered events are marked, on the horizontal axis.
    pub events: Vec<f64>,
}

/// A drawn chart as the template takes it.
#[derive(Debug, Serialize)]
pub(crate) struct Drawn {
    title: String,
    unit: String,
    lines: Vec<Line>,
    /// For desktops and for phones: the same chart, its text of the same size.
    pictures: [Picture; 2],
    /// What the page's script shows under the pointer.
    data: String,
}

/// A chart at one size.
#[derive(Debug, Serialize)]
pub(crate) struct Picture {
    svg: String,
    /// The plot's left, top, right and bottom edges as shares of the picture.
    plot: [f64; 4],
}

impl Chart {
    /// Draws it; `None` when there is not a single value.
    ///
    /// # Errors
    /// When plotters fails.
    pub(crate) fn draw(mut self, wide: (u32, u32)) -> Result<Option<Drawn>> {
        for line in &mut self.lines {
            line.points = thinned(&line.points);
        }
        self.lines.retain(|line| line.points.iter().any(|(_, value)| value.is_some()));
        if self.lines.is_empty() {
            return Ok(None);
        }
        let pictures = [self.picture(wide)?, self.picture((340, 220))?];
        let (from, to) = self.x_range();
        let lines: Vec<_> = self.lines.iter().map(|line| (&line.name, line.colour, &line.points)).collect();
        let axes = match self.axes {
            Axes::Time => "time",
            Axes::LatencyOverTime => "latency",
            Axes::Percentiles => "nines",
        };
        let data = serde_json::json!({ "x": [from, to], "axes": axes, "unit": self.unit, "lines": lines });
        Ok(Some(Drawn { title: self.title, unit: self.unit, lines: self.lines, pictures, data: data.to_string() }))
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value)
    }

    fn x_range(&self) -> (f64, f64) {
        let xs = self.lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x);
        (0.0, xs.fold(0.0, f64::max).max(1.0))
    }

    fn picture(&self, (width, height): (u32, u32)) -> Result<Picture> {
        let mut svg = String::new();
        let size = (width * SCALE, height * SCALE);
        let highest = self.values().fold(0.0, f64::max);
        let plot = {
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            if self.axes == Axes::Time {
                let top = if highest > 0.0 { highest * 1.08 } else { 1.0 };
                self.plot(&area, 0.0..top, width)?
            } else {
                let lowest = self.values().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
                let lowest = if lowest.is_finite() { lowest.max(1e-3) } else { 0.1 };
                self.plot(&area, (lowest * 0.8..highest.max(lowest * 5.0) * 1.3).log_scale(), width)?
            }
        };
        let share =
            |pixel: i32, whole: u32| f64::from((f64::from(pixel) / f64::from(whole) * 1e4).round() as u32) / 1e4;
        let ((left, right), (top, bottom)) = plot;
        let plot = [share(left, size.0), share(top, size.1), share(right, size.0), share(bottom, size.1)];
        Ok(Picture { svg: themed(&svg, size, &self.title), plot })
    }

    fn plot<Y>(&self, area: &DrawingArea<SVGBackend, plotters::coord::Shift>, y: Y, width: u32) -> Result<Pixels>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let (from, to) = self.x_range();
        let mut chart = ChartBuilder::on(area)
            .margin_top(16 * SCALE)
            .margin_right(14 * SCALE)
            .x_label_area_size(24 * SCALE)
            .y_label_area_size(50 * SCALE)
            .build_cartesian_2d(from..to, y)
            .map_err(failed)?;
        let x_label = |x: &f64| match self.axes {
            Axes::Percentiles => nines(*x),
            _ => format!("{} s", format::short(*x)),
        };
        let y_label = |y: &f64| match self.axes {
            Axes::Time => format::short(*y),
            _ if *y >= 1000.0 => format!("{} s", format::short(*y / 1000.0)),
            _ => format!("{} ms", format::short(*y)),
        };
        let percentiles = self.axes == Axes::Percentiles;
        let mut mesh = chart.configure_mesh();
        mesh.x_labels(if percentiles { to.ceil() as usize + 1 } else { width as usize / 64 })
            .y_labels(5)
            .x_label_formatter(&x_label)
            .y_label_formatter(&y_label)
            .label_style(text(TEXT))
            .axis_style(stroke(GRID, 1))
            .bold_line_style(stroke(GRID, 1))
            .light_line_style(plotters::style::TRANSPARENT)
            .set_all_tick_mark_size(5 * SCALE);
        if !percentiles {
            mesh.disable_x_mesh();
        }
        mesh.draw().map_err(failed)?;

        let pixels = chart.plotting_area().get_pixel_range();
        let (left, right, top, bottom) = (pixels.0.start, pixels.0.end, pixels.1.start, pixels.1.end);
        for (number, at) in self.events.iter().enumerate().filter(|(_, at)| (from..=to).contains(at)) {
            let x = left + (f64::from(right - left) * (at - from) / (to - from)) as i32;
            let label = text(EVENT).pos(Pos::new(HPos::Center, VPos::Bottom));
            let mark = EVENT.mix(0.55).stroke_width(SCALE);
            area.draw(&PathElement::new([(x, top), (x, bottom)], mark)).map_err(failed)?;
            area.draw(&Text::new((number + 1).to_string(), (x, top - 2 * SCALE as i32), label)).map_err(failed)?;
        }
        // The first line is the chart's main one: on top.
        for line in self.lines.iter().rev() {
            let style = stroke(RGBColor(9, u8::from(line.pale), line.colour as u8), 2);
            for stretch in line.points.split(|(_, value)| value.is_none()) {
                let stretch: Vec<_> = stretch.iter().filter_map(|(x, y)| Some((*x, (*y)?))).collect();
                match stretch[..] {
                    [] => Ok(()),
                    [point] => area_of(&chart).draw(&Circle::new(point, 2 * SCALE, style.filled())),
                    _ => area_of(&chart).draw(&PathElement::new(stretch, style)),
                }
                .map_err(failed)?;
            }
        }
        area.present().map_err(failed)?;
        Ok(((left, right), (top, bottom)))
    }
}

/// A plot's horizontal and vertical extent in pixels.
type Pixels = ((i32, i32), (i32, i32));

fn area_of<'a, 'b, C: plotters::coord::CoordTranslate>(
    chart: &'a plotters::chart::ChartContext<'b, SVGBackend<'b>, C>,
) -> &'a DrawingArea<SVGBackend<'b>, C> {
    chart.plotting_area()
}

fn text(colour: RGBColor) -> TextStyle<'static> {
    // The backend divides by 1.24: this is 11 px.
    ("inherit", 11.0 * 1.24 * f64::from(SCALE)).into_font().color(&colour)
}

fn stroke(colour: RGBColor, width: u32) -> ShapeStyle {
    colour.stroke_width(width * SCALE)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw a chart: {error}")
}

/// The quantile of a number of nines, as a percentage.
fn nines(nines: f64) -> String {
    let percent = 100.0 - 100.0 * 10f64.powf(-nines);
    let digits = (nines.round() as usize).saturating_sub(2);
    format!("{percent:.digits$} %")
}

/// Replaces the stand-in colours by the page's, and the fixed size by the drawing's shape.
fn themed(svg: &str, (width, height): (u32, u32), title: &str) -> String {
    let fixed = format!(r#"width="{width}" height="{height}" viewBox"#);
    let label = format!(r#"role="img" aria-label="{}" viewBox"#, title.replace(['<', '>', '&', '"'], " "));
    let mut svg = svg.replacen(&fixed, &label, 1).replace(r#" opacity="1""#, "").replace('\n', "");
    for (colour, variable) in [(TEXT, "muted"), (GRID, "grid"), (EVENT, "event")] {
        svg = svg.replace(&hex(colour), &format!("var(--{variable})"));
    }
    for colour in 0..COLOURS {
        let (full, pale) = (RGBColor(9, 0, colour as u8), RGBColor(9, 1, colour as u8));
        svg = svg.replace(&hex(full), &format!("var(--c{colour})"));
        svg = svg.replace(&format!("\"{}\"", hex(pale)), &format!(r#""var(--c{colour})" class="pale""#));
    }
    svg
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// At most the highest, the lowest and the first missing value of each stretch, in order: no peak and no gap is lost.
fn thinned(points: &[(f64, Option<f64>)]) -> Vec<(f64, Option<f64>)> {
    let length = points.len().div_ceil(STRETCHES);
    if length <= 3 {
        return points.to_vec();
    }
    let keep = |stretch: &[(f64, Option<f64>)]| {
        let values = || stretch.iter().enumerate().filter_map(|(at, (_, value))| Some((at, (*value)?)));
        let mut kept = [
            values().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at),
            values().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at),
            stretch.iter().position(|(_, value)| value.is_none()),
        ];
        kept.sort_unstable();
        kept.into_iter().flatten().map(|at| stretch[at]).collect::<Vec<_>>()
    };
    points.chunks(length).flat_map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_keeps_its_peaks_and_its_gaps() {
        let mut points: Vec<_> = (0..100_000).map(|at| (f64::from(at), Some(1.0))).collect();
        points[12_345].1 = Some(99.0);
        points[50_001].1 = None;
        let thin = thinned(&points);
        assert!(thin.len() <= 3 * STRETCHES, "{}", thin.len());
        assert!(thin.contains(&(12_345.0, Some(99.0))) && thin.contains(&(50_001.0, None)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn a_chart_takes_its_colours_from_the_page() {
        let line =
            Line { name: "a".to_owned(), colour: 1, pale: false, points: vec![(0.0, Some(1.0)), (9.0, Some(3.0))] };
        for axes in [Axes::Time, Axes::LatencyOverTime, Axes::Percentiles] {
            let (title, unit) = ("x < \"y\"".to_owned(), "1/s".to_owned());
            let chart = Chart { title, unit, axes, lines: vec![line.clone()], events: vec![4.0] };
            let [Picture { svg, .. }, _] = chart.draw((520, 230)).unwrap().unwrap().pictures;
            assert!(svg.contains("var(--c1)") && svg.contains("var(--event)"), "{svg}");
            assert!(!svg.contains("=\"#"), "{svg}");
        }
    }

    #[test]
    fn nines_read_as_percentages() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 5.0].map(nines), ["0 %", "90 %", "99 %", "99.9 %", "99.999 %"]);
    }

    #[test]
    fn a_chart_without_values_is_not_drawn() {
        let empty = Line { name: "a".to_owned(), colour: 0, pale: false, points: vec![(0.0, None)] };
        let (title, unit) = (String::new(), String::new());
        let chart = Chart { title, unit, axes: Axes::Time, lines: vec![empty], events: Vec::new() };
        assert!(chart.draw((520, 230)).unwrap().is_none());
    }
}
