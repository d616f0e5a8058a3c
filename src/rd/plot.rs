//! Gaps over rates as a picture.
use super::{means, Curve};
use plotters::prelude::*;

const COLORS: [RGBColor; 10] = [
    RGBColor(214, 39, 40),
    RGBColor(255, 127, 14),
    RGBColor(31, 119, 180),
    RGBColor(23, 190, 207),
    RGBColor(44, 160, 44),
    RGBColor(152, 223, 138),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
];
/// Bits above which a point is off the picture.
const HIGHEST: f64 = 1.5;

/// An SVG picture: bits above the water-filling limit over the rate, a line for each method, means over the layers.
///
/// # Errors
/// What the drawing library says.
pub fn plot(title: &str, curves: &[Curve]) -> Result<String, String> {
    let means = means(curves);
    let rates = means.iter().map(|m| m.rate);
    let (low, high) = rates.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), r| (low.min(r), high.max(r)));
    let top = means.iter().map(|m| m.gap).filter(|g| *g <= HIGHEST).fold(0.1, f64::max) * 1.08;
    let bottom = means.iter().map(|m| m.gap).fold(0.0, f64::min) * 1.08;
    let mut svg = String::new();
    draw(&mut svg, title, &means, (low - 0.1, high + 0.1), (bottom, top)).map_err(|e| e.to_string())?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    means: &[super::Mean],
    (low, high): (f64, f64),
    (bottom, top): (f64, f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, (960, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let (area, legend) = area.split_horizontally(690);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(low..high, bottom..top)?;
    chart.configure_mesh().x_desc("bits a weight").y_desc("bits above the water-filling limit").light_line_style(WHITE).draw()?;
    for ((group, color), y) in means.chunk_by(|a, b| a.method == b.method).zip(COLORS.iter().cycle()).zip((60..).step_by(24)) {
        let mut points: Vec<(f64, f64)> = group.iter().map(|m| (m.rate, m.gap)).filter(|p| p.1 <= top).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, color.filled())))?;
        legend.draw(&Circle::new((8, y), 5, color.filled()))?;
        legend.draw(&Text::new(group[0].method.name(), (20, y - 6), ("sans-serif", 14)))?;
    }
    legend.present()?;
    area.present()?;
    Ok(())
}
