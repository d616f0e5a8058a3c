//! From a model's name to the loaded model.
use super::{interrupt, output, Usage};
use crate::hub::{self, HubError, Opened, Source};
use crate::progress::Progress;
use crate::quantize::{self, Options, Report};
use crate::runtime::TextModel;
use anyhow::Context;
use std::path::Path;
use ws_kernels::cpu::{self, Isa};

/// [`hub::resolve`], where a rate out of range is wrong usage.
pub(super) fn resolve(name: &str) -> anyhow::Result<Source> {
    hub::resolve(name).map_err(|error| match error {
        HubError::Rate { .. } => Usage(error.to_string()).into(),
        other => other.into(),
    })
}

/// Loads a model for inference; ALIAS-wsR without a packed copy is quantized first. `dense` expands packed weights.
pub(super) fn load(name: &str, dense: bool, context: Option<usize>) -> anyhow::Result<TextModel> {
    let source = packed(resolve(name)?)?;
    let opened = if dense { source.open_dense() } else { open(&source) }?;
    let mut model = TextModel::load(opened).with_context(|| format!("cannot load {name}"))?;
    if let Some(context) = context {
        model.set_context(context)?;
    }
    Ok(model)
}

/// Opens packed weights with progress.
fn open(source: &Source) -> Result<Opened, HubError> {
    let mut bar: Option<Progress> = None;
    source.open_reporting(&mut |done, total| {
        bar.get_or_insert_with(|| Progress::new("weights, MB", total >> 20)).set(done >> 20, "");
    })
}

/// The source itself, or the packed copy that is made now and kept.
pub(super) fn packed(source: Source) -> anyhow::Result<Source> {
    let Source::WsOnLoad { base, rate, dir } = source else { return Ok(source) };
    output::note(&format!("quantizing to {rate} bits a weight into {} (once; kept for the next time)", dir.display()));
    if matches!(cpu::isa()?, Isa::Avx2 | Isa::Avx2Gfni) {
        output::note("without AVX-512, models that `wsrun quantize --effort light` has made generate 1.5 times as fast or more");
    }
    quantize_into(&base.open()?, &Options::new(rate), &dir)?;
    Ok(Source::Ws(dir))
}

/// Quantizes with progress on stderr, and says after Ctrl-C how to go on.
pub(super) fn quantize_into(opened: &Opened, options: &Options, dir: &Path) -> anyhow::Result<Report> {
    interrupt::hint(Some(format!("run the same command again to go on; finished blocks are kept in {}.partial", dir.display())));
    let mut bar: Option<(bool, Progress)> = None;
    let report = quantize::quantize(opened, options, dir, &mut |progress| {
        let (calibrating, label, done, total) = match progress {
            quantize::Progress::Calibration { tokens, total } => (true, "calibration text", tokens, total),
            quantize::Progress::Blocks { done, total } => (false, "blocks", done as u64, total as u64),
        };
        if bar.as_ref().is_none_or(|(stage, _)| *stage != calibrating) {
            bar = Some((calibrating, Progress::new(label, total)));
        }
        if let Some((_, bar)) = &mut bar {
            bar.set(done, "");
        }
    })?;
    interrupt::hint(None);
    Ok(report)
}
