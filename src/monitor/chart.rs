//! Small pictures for the page, as SVG text.

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
type Drawn = Result<(), Box<dyn Error>>;

/// Values from left to right; a gap where there is none.
pub struct Line {
    /// Empty where there is nothing to tell apart.
    pub name: String,
    pub color: RGBColor,
    pub points: Vec<Option<f64>>,
}

/// Shares of the reference in gray, of the day in blue before it.
pub fn histogram(it: &Histogram) -> String {
    let shares = |counts: &[u64]| -> Vec<f64> {
        let total = counts.iter().sum::<u64>().max(1) as f64;
        counts.iter().map(|&it| it as f64 / total).collect()
    };
    let (reference, day) = (shares(&it.reference), shares(&it.day));
    let step = (it.high - it.low) / reference.len().max(1) as f64;
    draw(|area| {
        let top = reference.iter().chain(&day).copied().fold(0.0, f64::max);
        let mut chart = frame(area, it.low..it.high, top, &short, &percent)?;
        for (shares, style) in [(&reference, GRAY.mix(0.7).filled()), (&day, BLUE.mix(0.55).filled())] {
            let bar = |(at, &share): (usize, &f64)| {
                let left = it.low + step * at as f64;
                Rectangle::new([(left, 0.0), (left + step * 0.92, share)], style)
            };
            let bars = shares.iter().enumerate().filter(|it| *it.1 > 0.0);
            chart.draw_series(bars.map(bar))?;
        }
        Ok(())
    })
}

/// One bar a place.
pub fn bars(counts: &[u64], label: &dyn Fn(f64) -> String) -> String {
    draw(|area| {
        let top = counts.iter().max().copied().unwrap_or(0) as f64;
        let mut chart = frame(area, 0.0..counts.len().max(1) as f64, top, label, &short)?;
        let bar = |(at, &count): (usize, &u64)| {
            Rectangle::new(
                [(at as f64 + 0.06, 0.0), (at as f64 + 0.94, count as f64)],
                BLUE.mix(0.7).filled(),
            )
        };
        chart.draw_series(counts.iter().enumerate().filter(|it| *it.1 > 0).map(bar))?;
        Ok(())
    })
}

/// Lines over common places.
pub fn lines(lines: &[Line], label: &dyn Fn(f64) -> String, shown: &dyn Fn(f64) -> String) -> String {
    draw(|area| {
        let last = lines.iter().map(|it| it.points.len()).max().unwrap_or(0).saturating_sub(1).max(1);
        let top = lines.iter().flat_map(|it| &it.points).flatten().copied().fold(0.0, f64::max);
        let mut chart = frame(area, 0.0..last as f64, top, label, shown)?;
        for line in lines {
            let style = ShapeStyle::from(line.color).stroke_width(2);
            let places: Vec<_> = line.points.iter().enumerate().map(|(at, it)| (at as f64, *it)).collect();
            for run in places.split(|it| it.1.is_none()) {
                let points: Vec<_> = run.iter().filter_map(|it| Some((it.0, it.1?))).collect();
                chart.draw_series(points.iter().map(|&it| Circle::new(it, 2, line.color.filled())))?;
                chart.draw_series([PathElement::new(points, style)])?;
            }
        }
        Ok(())
    })
}

/// `rgb(1,2,3)`
pub fn css(color: RGBColor) -> String {
    format!("rgb({},{},{})", color.0, color.1, color.2)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn draw(what: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        what(&area).and_then(|()| Ok(area.present()?)).expect("drawing into a string does not fail");
    }
    svg
}

/// Axes from 0 to a little above `top`, lines so faint that they do not compete with what is drawn.
fn frame<'a, 'b>(
    area: &'a Area<'b>,
    across: std::ops::Range<f64>,
    top: f64,
    label: &dyn Fn(f64) -> String,
    shown: &dyn Fn(f64) -> String,
) -> Result<Chart<'a, 'b>, Box<dyn Error>> {
    let top = if top > 0.0 { top * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .margin_right(14)
        .x_label_area_size(22)
        .y_label_area_size(46)
        .build_cartesian_2d(across, 0.0..top)?;
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
        .y_label_formatter(&|it| shown(*it))
        .draw()?;
    Ok(chart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_at_all_is_drawn_without_a_fall() {
        let empty = histogram(&Histogram { high: 1.0, ..Histogram::default() });
        let gaps = Line { name: "x".into(), color: BLUE, points: vec![None, None] };
        for svg in [empty, bars(&[], &short), lines(&[], &short, &short), lines(&[gaps], &short, &short)] {
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
        }
    }

    #[test]
    fn a_gap_parts_a_line() {
        let line = |points: &[Option<f64>]| Line { name: "x".into(), color: BLUE, points: points.to_vec() };
        let count = |points: &[Option<f64>]| {
            let svg = lines(&[line(points)], &short, &short);
            (svg.matches("<circle").count(), svg.matches("stroke-width=\"2\"").count())
        };
        assert_eq!(count(&[Some(1.0), Some(2.0), Some(3.0), Some(1.0)]), (4, 1));
        assert_eq!(count(&[Some(1.0), Some(2.0), None, Some(3.0), Some(1.0)]), (4, 2));
    }
}
