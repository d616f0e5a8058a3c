//! What information theory allows: reverse water-filling and the closed forms around it, for weights of unit variance.

/// Least distortion a weight at `rate` bits for inputs whose covariance has these eigenvalues: reverse water-filling,
/// `D = mean min(theta, s_i)` where `rate = mean max(0, log2(s_i / theta) / 2)`.
pub fn water_filling(eigenvalues: &[f64], rate: f64) -> f64 {
    let largest = eigenvalues.iter().copied().fold(0.0, f64::max);
    if largest <= 0.0 {
        return 0.0;
    }
    let count = eigenvalues.len() as f64;
    let (mut low, mut high) = (largest * 2f64.powf(-2.0 * rate * count).max(1e-280), largest);
    for _ in 0..200 {
        let theta = (low * high).sqrt();
        let spent = eigenvalues.iter().map(|s| if *s > theta { 0.5 * (s / theta).log2() } else { 0.0 }).sum::<f64>() / count;
        if spent > rate {
            low = theta;
        } else {
            high = theta;
        }
    }
    eigenvalues.iter().map(|s| s.min(high)).sum::<f64>() / count
}

/// The rate at which water-filling reaches `distortion`; the gap of a code is its stored rate minus this.
pub fn rate_at(eigenvalues: &[f64], distortion: f64) -> f64 {
    let (mut low, mut high) = (0.0, 64.0);
    for _ in 0..100 {
        let rate = 0.5 * (low + high);
        if water_filling(eigenvalues, rate) > distortion {
            low = rate;
        } else {
            high = rate;
        }
    }
    high
}

/// Bits that GPTQ with equal rates loses to unequal ones at high rate: `log2(mean L_jj^2 / geometric mean L_jj^2) / 2`, from the Cholesky
/// factor's diagonal.
pub fn equal_rate_loss(diagonal: &[f64]) -> f64 {
    let count = diagonal.len() as f64;
    let mean = diagonal.iter().map(|l| l * l).sum::<f64>() / count;
    let log_mean = diagonal.iter().map(|l| (l * l).log2()).sum::<f64>() / count;
    0.5 * (mean.log2() - log_mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_spectrum_is_the_gaussian_rate_distortion_function() {
        for rate in [0.5, 1.0, 3.0] {
            let d = water_filling(&[2.0; 10], rate);
            assert!((d / (2.0 * 0.25f64.powf(rate)) - 1.0).abs() < 1e-9);
            assert!((rate_at(&[2.0; 10], d) - rate).abs() < 1e-9);
        }
    }

    #[test]
    fn at_high_rate_the_geometric_mean_decides() {
        let spectrum: Vec<f64> = (1..=50).map(|i| 1.0 / i as f64).collect();
        let geometric = (spectrum.iter().map(|s| s.ln()).sum::<f64>() / 50.0).exp();
        assert!((water_filling(&spectrum, 6.0) / (geometric * 0.25f64.powi(6)) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn equal_rates_lose_nothing_on_a_flat_diagonal() {
        assert!(equal_rate_loss(&[3.0; 4]).abs() < 1e-12);
        assert!((equal_rate_loss(&[1.0, 2.0]) - 0.5 * (2.5f64.log2() - 1.0)).abs() < 1e-12);
    }
}
