//! From logits to the next token: temperature, top-k, top-p, min-p, repetition penalty. Pure functions of logits and a seeded
//! generator, shared by [`crate::runtime`] and by the calibration text that [`crate::quantize`] lets a model write.
use rand::Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha12Rng;

/// How the next token is chosen. The filters apply in the order of the fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Logits of tokens that were seen are divided by it where positive and multiplied where negative (Keskar et al. 2019, section 4.1);
    /// 1 changes nothing.
    pub repetition_penalty: f32,
    /// Logits are divided by it. 0 takes the most likely token, the lowest id among equals, and needs no filter and no seed.
    pub temperature: f32,
    /// Keeps the `k` most likely tokens.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least `p` (Holtzman et al. 2020); 1 keeps all.
    pub top_p: f32,
    /// Drops tokens that are less likely than `p` times the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Seed of the generator; equal seeds and logits give equal tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// Plain sampling from the model's distribution: temperature 1, no filter.
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// Why no token can be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A setting is out of its range.
    #[error("{name} must be {range}, not {value}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// The range that it must be in.
        range: &'static str,
        /// Its value.
        value: f64,
    },
    /// A logit is NaN or positive infinity.
    #[error("the logit of token {token} is {value}: the weights or an activation have overflowed")]
    NotFinite {
        /// Token id.
        token: usize,
        /// The logit.
        value: f32,
    },
    /// Every logit is negative infinity, or there are none.
    #[error("no token has a finite logit")]
    Nothing,
}

impl Sampling {
    /// Checks every range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |ok: bool, name, range, value: f32| {
            if ok {
                Ok(())
            } else {
                Err(SamplingError::Setting { name, range, value: value.into() })
            }
        };
        let finite = |v: f32| v.is_finite();
        check(finite(self.repetition_penalty) && self.repetition_penalty > 0.0, "repetition penalty", "above 0", self.repetition_penalty)?;
        check(finite(self.temperature) && self.temperature >= 0.0, "temperature", "at least 0", self.temperature)?;
        check(self.top_k != Some(0), "top-k", "at least 1", 0.0)?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top-p", "above 0 and at most 1", self.top_p)?;
        check((0.0..=1.0).contains(&self.min_p), "min-p", "from 0 to 1", self.min_p)
    }
}

/// A choice among tokens with its own random stream.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    rng: ChaCha12Rng,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler on stream 0 of the seed.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] if a setting is out of range.
    pub fn new(settings: Sampling) -> Result<Self, SamplingError> {
        Self::with_stream(settings, 0)
    }

    /// A sampler on its own stream of the seed, independent of all other streams: one for each sequence of a batch.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] if a setting is out of range.
    pub fn with_stream(settings: Sampling, stream: u64) -> Result<Self, SamplingError> {
        settings.validate()?;
        let mut rng = ChaCha12Rng::seed_from_u64(settings.seed);
        rng.set_stream(stream);
        Ok(Self { settings, rng, candidates: Vec::new() })
    }

    /// Chooses the next token from `logits` (`[vocab]`); `seen` are the tokens that the repetition penalty applies to.
    ///
    /// # Errors
    /// [`SamplingError::NotFinite`] for a NaN or infinite logit (negative infinity means "never" and is allowed),
    /// [`SamplingError::Nothing`] if no token is left.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32, SamplingError> {
        if let Some(token) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
            return Err(SamplingError::NotFinite { token, value: logits[token] });
        }
        let penalized;
        let logits = if self.settings.repetition_penalty == 1.0 {
            logits
        } else {
            penalized = penalize(logits, seen, self.settings.repetition_penalty);
            &penalized
        };
        let (best, max) = greedy(logits).ok_or(SamplingError::Nothing)?;
        if self.settings.temperature == 0.0 {
            return Ok(best);
        }
        self.filter(logits, max);
        Ok(draw(&self.candidates, self.rng.random()))
    }

    /// Fills `candidates` with the unnormalised probabilities (relative to the most likely token) and ids that pass the filters.
    fn filter(&mut self, logits: &[f32], max: f32) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.settings;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(l, id)| (((l - max) / temperature).exp(), id)));
        // The most likely token has weight 1, so min-p is a bound on the weight; it comes last, but bounds commute with taking the top.
        let in_order = match top_k {
            Some(k) if k < candidates.len() => {
                candidates.select_nth_unstable_by(k - 1, descending);
                candidates.truncate(k);
                false
            }
            _ => true,
        };
        if top_p < 1.0 {
            nucleus(candidates, top_p);
        }
        candidates.retain(|(w, _)| *w > 0.0 && *w >= min_p);
        // Selection leaves an order that depends on the library; the draw walks the candidates in the order of ids.
        if !in_order || top_p < 1.0 {
            candidates.sort_unstable_by_key(|(_, id)| *id);
        }
    }
}

/// More likely first, then the lower id.
fn descending(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the smallest set of most likely candidates whose share is at least `top_p`. Only as many candidates are sorted as are needed.
fn nucleus(candidates: &mut Vec<(f32, u32)>, top_p: f32) {
    let total: f64 = candidates.iter().map(|(w, _)| f64::from(*w)).sum();
    let goal = f64::from(top_p) * total;
    let mut sum = 0.0;
    let mut sorted = 0;
    let mut step = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let take = step.min(rest.len());
        if take < rest.len() {
            rest.select_nth_unstable_by(take - 1, descending);
        }
        rest[..take].sort_unstable_by(descending);
        for i in sorted..sorted + take {
            sum += f64::from(candidates[i].0);
            if sum >= goal {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted += take;
        step *= 4;
    }
}

/// The candidate at the fraction `u` (in `[0, 1)`) of the cumulative weight.
fn draw(candidates: &[(f32, u32)], u: f64) -> u32 {
    let total: f64 = candidates.iter().map(|(w, _)| f64::from(*w)).sum();
    let mut left = u * total;
    for (w, id) in candidates {
        left -= f64::from(*w);
        if left < 0.0 {
            return *id;
        }
    }
    // Rounding can leave a hair at the end. The most likely token always passes the filters, so there is a last one.
    candidates[candidates.len() - 1].1
}

/// The most likely token, the lowest id among equals, and its logit. `None` if there is no finite logit.
pub fn greedy(logits: &[f32]) -> Option<(u32, f32)> {
    const CHUNK: usize = 256;
    let (mut best, mut max) = (None, f32::NEG_INFINITY);
    for (n, chunk) in logits.chunks(CHUNK).enumerate() {
        let largest = largest(chunk);
        if largest > max {
            (best, max) = (Some(n), largest);
        }
    }
    let first = best? * CHUNK;
    let within = logits[first..].iter().position(|logit| *logit == max)?;
    Some(((first + within) as u32, max))
}

/// The largest of some values, NaN left out; in lanes, so that it is vector code.
fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (lanes, rest) = values.as_chunks::<16>();
    let mut maxima = [f32::NEG_INFINITY; 16];
    for lane in lanes {
        for (max, value) in maxima.iter_mut().zip(lane) {
            *max = larger(*max, *value);
        }
    }
    maxima.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

fn penalize(logits: &[f32], seen: &[u32], penalty: f32) -> Vec<f32> {
    let mut out = logits.to_vec();
    for &id in seen {
        if let Some(&logit) = logits.get(id as usize) {
            out[id as usize] = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 3.0).collect()
    }

    fn frequencies(settings: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(settings).unwrap();
        let mut counts = vec![0.0; logits.len()];
        let n = 40_000;
        for _ in 0..n {
            counts[sampler.sample(logits, &[]).unwrap() as usize] += 1.0 / f64::from(n);
        }
        counts
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        for (g, w) in got.iter().zip(want) {
            // Five standard deviations of a frequency over 40000 draws are at most 0.0125.
            assert!((g - w).abs() < 0.0125 && (*w > 0.0 || *g == 0.0), "{got:?} is not {want:?}");
        }
    }

    #[test]
    fn plain_sampling_follows_the_distribution() {
        let p = [0.5, 0.2, 0.0, 0.25, 0.05];
        assert_close(&frequencies(Sampling::default(), &logits(&p)), &[0.5, 0.2, 0.0, 0.25, 0.05]);
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let l = logits(&[0.8, 0.2]);
        assert_close(&frequencies(Sampling { temperature: 0.5, ..Sampling::default() }, &l), &[16.0 / 17.0, 1.0 / 17.0]);
        assert_close(&frequencies(Sampling { temperature: 2.0, ..Sampling::default() }, &l), &[2.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn top_k_keeps_k_and_the_lower_id_of_equals() {
        let l = logits(&[0.1, 0.4, 0.2, 0.2, 0.1]);
        assert_close(&frequencies(Sampling { top_k: Some(2), ..Sampling::default() }, &l), &[0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        assert_close(&frequencies(Sampling { top_k: Some(1), ..Sampling::default() }, &l), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_close(&frequencies(Sampling { top_k: Some(99), ..Sampling::default() }, &l), &[0.1, 0.4, 0.2, 0.2, 0.1]);
    }

    #[test]
    fn top_p_keeps_the_smallest_sufficient_set() {
        let l = logits(&[0.1, 0.4, 0.3, 0.2]);
        assert_close(&frequencies(Sampling { top_p: 0.65, ..Sampling::default() }, &l), &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
        assert_close(&frequencies(Sampling { top_p: 0.75, ..Sampling::default() }, &l), &[0.0, 4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0]);
        assert_close(&frequencies(Sampling { top_p: 1e-6, ..Sampling::default() }, &l), &[0.0, 1.0, 0.0, 0.0]);
        assert_close(&frequencies(Sampling { top_p: 1.0, ..Sampling::default() }, &l), &[0.1, 0.4, 0.3, 0.2]);
    }

    #[test]
    fn nucleus_agrees_with_a_full_sort_on_a_large_vocabulary() {
        let weight = |i: u32| ((i * 7919 % 5000) as f32 / 700.0).exp();
        for top_p in [0.01, 0.3, 0.9, 0.999] {
            let mut sorted: Vec<_> = (0..5000).map(|i| (weight(i), i)).collect();
            let total: f64 = sorted.iter().map(|c| f64::from(c.0)).sum();
            let mut fast = sorted.clone();
            nucleus(&mut fast, top_p);
            sorted.sort_by(descending);
            let mut sum = 0.0;
            let mut keep = 0;
            while sum < f64::from(top_p) * total {
                sum += f64::from(sorted[keep].0);
                keep += 1;
            }
            assert_eq!(fast, sorted[..keep]);
        }
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        let l = logits(&[0.05, 0.5, 0.2, 0.25]);
        assert_close(&frequencies(Sampling { min_p: 0.45, ..Sampling::default() }, &l), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        assert_close(&frequencies(Sampling { min_p: 1.0, ..Sampling::default() }, &l), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }).unwrap();
        assert_eq!(sampler.sample(&[1.0, 5.0, 2.0, 5.0], &[]), Ok(1));
        assert_eq!(sampler.sample(&[-1e30, f32::NEG_INFINITY], &[]), Ok(0));
        for (at, len) in [(0, 3), (17, 40), (255, 1000), (256, 300), (700, 701)] {
            let mut l: Vec<f32> = (0..len).map(|i| -1.0 - i as f32).collect();
            l[at] = 2.0;
            assert_eq!(greedy(&l), Some((at as u32, 2.0)));
            l[len - 1] = 2.0;
            l[1] = f32::NAN;
            assert_eq!(greedy(&l), Some((at as u32, 2.0)));
        }
        assert_eq!(greedy(&[f32::NEG_INFINITY; 300]), None);
        assert_eq!(greedy(&[]), None);
    }

    #[test]
    fn repetition_penalty_lowers_seen_tokens_once() {
        let settings = Sampling { temperature: 0.0, repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(settings).unwrap();
        assert_eq!(sampler.sample(&[4.0, 3.0, 1.0], &[0, 0, 9]), Ok(1));
        assert_eq!(sampler.sample(&[-4.0, -3.0, -7.0], &[1]), Ok(0));
        // Twice in the text is penalized as once: 4 / 2 is still more than 1.5.
        assert_eq!(sampler.sample(&[4.0, 1.5, 1.0], &[0, 0, 0]), Ok(0));
    }

    #[test]
    fn seeds_and_streams_repeat_and_differ() {
        let l = vec![0.0; 1000];
        let run = |seed, stream| {
            let mut s = Sampler::with_stream(Sampling { seed, ..Sampling::default() }, stream).unwrap();
            (0..8).map(|_| s.sample(&l, &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(7, 3), run(7, 3));
        assert_ne!(run(7, 3), run(8, 3));
        assert_ne!(run(7, 3), run(7, 4));
    }

    #[test]
    fn logits_that_are_no_distribution_are_refused() {
        let mut sampler = Sampler::new(Sampling::default()).unwrap();
        assert!(matches!(sampler.sample(&[0.0, f32::NAN], &[]), Err(SamplingError::NotFinite { token: 1, .. })));
        assert!(matches!(sampler.sample(&[f32::INFINITY, 0.0], &[]), Err(SamplingError::NotFinite { token: 0, .. })));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], &[]), Err(SamplingError::Nothing));
        assert_eq!(sampler.sample(&[], &[]), Err(SamplingError::Nothing));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -3.0], &[]), Ok(1));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let bad = [
            Sampling { temperature: -0.1, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_k: Some(0), ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { top_p: 1.1, ..Sampling::default() },
            Sampling { min_p: -0.5, ..Sampling::default() },
            Sampling { min_p: f32::NAN, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
        ];
        for settings in bad {
            assert!(matches!(settings.validate(), Err(SamplingError::Setting { .. })), "{settings:?}");
        }
    }
}
