//! Charts of the HTML page as SVG text: histograms, bars and lines.

use std::error::Error;

use plotters::{
    backend::SVGBackend,
    chart::{ChartBuilder, ChartContext},
    coord::{Shift, types::RangedCoordf64},
    drawing::{DrawingArea, IntoDrawingArea},
    element::{Circle, PathElement, Rectangle},
    prelude::Cartesian2d,
    style::{Color, IntoFont, RGBColor, ShapeStyle},
};

use crate::monitor::{Histogram, findings::short};

pub const BLUE: RGBColor = RGBColor(49, 103, 160);
pub const ORANGE: RGBColor = RGBColor(204, 125, 40);
pub const GREEN: RGBColor = RGBColor(62, 140, 100);
pub const GRAY: RGBColor = RGBColor(168, 176, 186);
const INK: RGBColor = RGBColor(96, 104, 114);
const FAINT: RGBColor = RGBColor(232, 235, 239);
const SIZE: (u32, u32) = (360, 190);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type DrawResult = Result<(), Box<dyn Error>>;

/// One line of a chart: values at equal steps, with a gap for each missing value.
pub struct Line {
    /// Name in the legend; empty for no legend entry.
    pub name: String,
    pub color: RGBColor,
    pub points: Vec<Option<f64>>,
}

/// Draws a histogram: shares of the reference in gray, of the day in blue on top.
pub fn histogram(histogram: &Histogram) -> String {
    let shares = |counts: &[u64]| -> Vec<f64> {
        let total = counts.iter().sum::<u64>().max(1) as f64;
        counts.iter().map(|&count| count as f64 / total).collect()
    };
    let (reference, day) = (shares(&histogram.reference), shares(&histogram.day));
    let step = (histogram.high - histogram.low) / reference.len().max(1) as f64;
    draw(|area| {
        let top = reference.iter().chain(&day).copied().fold(0.0, f64::max);
        let mut chart = axes(area, histogram.low..histogram.high, top, &short, &percent)?;
        for (shares, style) in [(&reference, GRAY.mix(0.7).filled()), (&day, BLUE.mix(0.55).filled())] {
            let bar = |(index, &share): (usize, &f64)| {
                let left = histogram.low + step * index as f64;
                Rectangle::new([(left, 0.0), (left + step * 0.92, share)], style)
            };
            let bars = shares.iter().enumerate().filter(|(_, share)| **share > 0.0);
            chart.draw_series(bars.map(bar))?;
        }
        Ok(())
    })
}

/// Draws one bar per count.
pub fn bars(counts: &[u64], label: &dyn Fn(f64) -> String) -> String {
    draw(|area| {
        let top = counts.iter().max().copied().unwrap_or(0) as f64;
        let mut chart = axes(area, 0.0..counts.len().max(1) as f64, top, label, &short)?;
        let bar = |(index, &count): (usize, &u64)| {
            Rectangle::new(
                [(index as f64 + 0.06, 0.0), (index as f64 + 0.94, count as f64)],
                BLUE.mix(0.7).filled(),
            )
        };
        chart.draw_series(counts.iter().enumerate().filter(|(_, count)| **count > 0).map(bar))?;
        Ok(())
    })
}

/// Draws lines over the same horizontal axis.
pub fn lines(lines: &[Line], label: &dyn Fn(f64) -> String, value: &dyn Fn(f64) -> String) -> String {
    draw(|area| {
        let last = lines.iter().map(|it| it.points.len()).max().unwrap_or(0).saturating_sub(1).max(1);
        let top = lines.iter().flat_map(|it| &it.points).flatten().copied().fold(0.0, f64::max);
        let mut chart = axes(area, 0.0..last as f64, top, label, value)?;
        for line in lines {
            let style = ShapeStyle::from(line.color).stroke_width(2);
            let values: Vec<_> =
                line.points.iter().enumerate().map(|(index, point)| (index as f64, *point)).collect();
            for run in values.split(|(_, point)| point.is_none()) {
                let points: Vec<_> = run.iter().filter_map(|&(x, y)| Some((x, y?))).collect();
                chart.draw_series(points.iter().map(|&it| Circle::new(it, 2, line.color.filled())))?;
                chart.draw_series([PathElement::new(points, style)])?;
            }
        }
        Ok(())
    })
}

/// Formats a color for CSS, as in `rgb(1,2,3)`.
pub fn css(color: RGBColor) -> String {
    format!("rgb({},{},{})", color.0, color.1, color.2)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn draw(content: impl FnOnce(&Area<'_>) -> DrawResult) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        content(&area).and_then(|()| Ok(area.present()?)).expect("drawing into a string does not fail");
    }
    svg
}

/// Draws axes and faint grid lines; the vertical axis reaches from 0 to a little above `top`.
fn axes<'a, 'b>(
    area: &'a Area<'b>,
    horizontal: std::ops::Range<f64>,
    top: f64,
    label: &dyn Fn(f64) -> String,
    value: &dyn Fn(f64) -> String,
) -> Result<Chart<'a, 'b>, Box<dyn Error>> {
    let top = if top > 0.0 { top * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .margin_right(14)
        .x_label_area_size(22)
        .y_label_area_size(46)
        .build_cartesian_2d(horizontal, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(FAINT.mix(0.0))
        .bold_line_style(FAINT)
        .axis_style(FAINT)
        .label_style(("sans-serif", 11).into_font().color(&INK))
        .x_labels(6)
        .y_labels(4)
        .x_label_formatter(&|it| label(*it))
        .y_label_formatter(&|it| value(*it))
        .draw()?;
    Ok(chart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_charts_are_valid_svg() {
        let empty = histogram(&Histogram { high: 1.0, ..Histogram::default() });
        let gaps = Line { name: "x".into(), color: BLUE, points: vec![None, None] };
        for svg in [empty, bars(&[], &short), lines(&[], &short, &short), lines(&[gaps], &short, &short)] {
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
        }
    }

    #[test]
    fn a_gap_splits_a_line() {
        let line = |points: &[Option<f64>]| Line { name: "x".into(), color: BLUE, points: points.to_vec() };
        let count = |points: &[Option<f64>]| {
            let svg = lines(&[line(points)], &short, &short);
            (svg.matches("<circle").count(), svg.matches("stroke-width=\"2\"").count())
        };
        assert_eq!(count(&[Some(1.0), Some(2.0), Some(3.0), Some(1.0)]), (4, 1));
        assert_eq!(count(&[Some(1.0), Some(2.0), None, Some(3.0), Some(1.0)]), (4, 2));
    }
}
