//! `wsrun rd` through the front door.
mod common;
use common::Fixture;
use serde_json::Value;

/// The value of a method at a rate among points or means.
fn of<'a>(points: &'a Value, method: &str, rate: f64) -> &'a Value {
    let found = points.as_array().unwrap().iter().find(|p| p["method"] == method && p["target"] == rate);
    found.unwrap_or_else(|| panic!("no {method} at {rate}"))
}

fn gap(curve: &Value, method: &str, rate: f64) -> f64 {
    of(&curve["points"], method, rate)["gap"].as_f64().unwrap()
}

fn rd(f: &Fixture, args: &[&str]) -> Value {
    let args: Vec<&str> = ["rd", "--json"].iter().chain(args).copied().collect();
    f.run(&args).json()
}

#[test]
fn stored_layers_are_this_near_to_the_limit() {
    let f = Fixture::new();
    let found = rd(&f, &["--methods", "trellis", "--rates", "1.5,2,3,4"]);
    // All side data of 1024 x 1024 counted: 0.03 bits of scales alone.
    for (curve, most) in
        found["layers"].as_array().unwrap().iter().zip([[0.25, 0.16, 0.175, 0.20], [0.23, 0.185, 0.185, 0.215], [0.28, 0.255, 0.23, 0.25]])
    {
        for (rate, most) in [1.5, 2.0, 3.0, 4.0].into_iter().zip(most) {
            let point = of(&curve["points"], "trellis", rate);
            let stored = point["rate"].as_f64().unwrap();
            assert!(stored <= rate && stored > rate - 0.01, "{stored} at {rate}");
            let gap = point["gap"].as_f64().unwrap();
            assert!(gap < most && gap > 0.0, "{}: {gap} at {rate}", curve["layer"]);
        }
    }
}

#[test]
fn theory_and_the_other_quantizers_are_where_they_should_be() {
    let f = Fixture::new();
    let small = ["--in-features", "384", "--out-features", "384", "--rates", "2,4"];
    let found = rd(&f, &[&small[..], &["--spectrum", "flat", "--spectrum", "power:2"]].concat());
    let curves = found["layers"].as_array().unwrap();
    let side = 32.0 / 384.0;
    for rate in [2.0, 4.0] {
        // Entropy-coded uniform scalars lose log2(2 pi e / 12) / 2 on a flat spectrum.
        assert!((gap(&curves[0], "entropy", rate) - side - 0.2546).abs() < 0.02, "{rate}");
        assert!(gap(&curves[0], "ideal", rate).abs() < 0.02);
        for curve in curves {
            let gap = |method| gap(curve, method, rate);
            assert!(gap("trellis") < gap("entropy").min(gap("scalar")));
            assert!(gap("entropy-column") < gap("entropy"));
            assert!(gap("gptq") < gap("rtn"));
            let limit = curve["limit"].as_array().unwrap().iter().find(|l| l["rate"] == rate).unwrap()["distortion"].as_f64().unwrap();
            for point in curve["points"].as_array().unwrap().iter().filter(|p| p["target"] == rate && p["rate"].as_f64() <= Some(rate)) {
                assert!(point["distortion"].as_f64().unwrap() > 0.97 * limit, "{point} beats the limit {limit}");
            }
        }
    }
    // At high rate equal steps lose what the diagonal of L says.
    let loss = curves[1]["equal_rate_loss"].as_f64().unwrap();
    let lost = gap(&curves[1], "huffman-gptq", 4.0) - gap(&curves[1], "entropy-column", 4.0);
    assert!(loss > 0.2 && (lost - loss).abs() < 0.1, "{lost}, {loss}");
    assert!(curves[0]["equal_rate_loss"].as_f64().unwrap() < 1e-3);
}

#[test]
fn dead_features_cost_nothing_and_null_directions_do() {
    let f = Fixture::new();
    let args = [
        "--in-features",
        "640",
        "--out-features",
        "512",
        "--spectrum",
        "power:1",
        "--rates",
        "2.5",
        "--methods",
        "trellis,ideal,ideal-pivoted",
    ];
    let [plain, dead, null] =
        [&[][..], &["--dead", "0.05"], &["--null", "0.05"]].map(|more| rd(&f, &[&args[..], more].concat())["layers"][0].clone());
    assert_eq!(dead["shape"], serde_json::json!([512, 640, 608]));
    assert!((gap(&plain, "trellis", 2.5) - gap(&dead, "trellis", 2.5)).abs() < 0.02);
    assert!(gap(&null, "ideal", 2.5) > gap(&plain, "ideal", 2.5) + 0.1);
    assert!(gap(&null, "ideal-pivoted", 2.5) < gap(&null, "ideal", 2.5));
}

#[test]
fn a_models_layers_and_its_perplexity() {
    let f = Fixture::new();
    std::fs::write(f.path("text.txt"), "The inn in the north then began to rain in the thin autumn. ".repeat(40)).unwrap();
    let args = ["--model", "model", "--samples", "8", "--context", "64", "--rates", "2,8", "--methods", "trellis,entropy,rtn"];
    let texts = ["--text", "text.txt", "--window", "64", "--windows", "4"];
    let found = rd(&f, &[&args[..], &texts].concat());
    assert_eq!(found["layers"].as_array().unwrap().len(), 14);
    let scored = found["perplexity"].as_array().unwrap();
    assert_eq!(scored.len(), 7);
    let dense = scored[0]["perplexity"][0].as_f64().unwrap();
    let plain = f.run(&["perplexity", "--model", "model", "--text", "text.txt", "--context", "64", "--windows", "4", "--json"]).json();
    assert!((dense - plain["perplexity"].as_f64().unwrap()).abs() < 1e-6 * dense);
    for method in ["trellis", "entropy", "rtn"] {
        let error = |rate| of(&found["means"], method, rate)["relative_error"].as_f64().unwrap();
        assert!(error(8.0) < 0.01 * error(2.0), "{method}");
        let far = |rate: f64| {
            let scored = scored.iter().find(|s| s["method"] == method && s["target"] == rate).unwrap();
            (scored["perplexity"][0].as_f64().unwrap().ln() / dense.ln() - 1.0).abs()
        };
        assert!(far(8.0) < 0.05, "{method}: {} from {dense}", far(8.0));
    }
    // The file that `wsrun quantize` makes has these errors.
    let quantized = f.quantize("8", "packed");
    let (rd, file) =
        (of(&found["means"], "trellis", 8.0)["relative_error"].as_f64().unwrap(), quantized["mean_relative_error"].as_f64().unwrap());
    assert!((rd / file - 1.0).abs() < 0.1, "{rd}, {file}");

    let one = rd_layers(&f, &args, "layers.1.mlp.down");
    assert_eq!(one, ["model.layers.1.mlp.down_proj"]);
}

fn rd_layers(f: &Fixture, args: &[&str], layers: &str) -> Vec<String> {
    let found = rd(f, &[args, &["--layers", layers]].concat());
    found["layers"].as_array().unwrap().iter().map(|l| l["layer"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_table_and_the_picture_show_every_method() {
    let f = Fixture::new();
    let args = ["rd", "--in-features", "64", "--out-features", "64", "--rates", "2,3.5", "--plot", "gap.svg"];
    let table = f.run(&args).ok().stdout;
    let picture = std::fs::read_to_string(f.path("gap.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    for text in ["trellis WaterSIC", "pooled entropy", "Huffman-GPTQ", "rotated GPTQ", "round to nearest", "pivoted order"] {
        assert!(table.contains(text) && picture.contains(text), "{text}:\n{table}");
    }
    for text in ["water-filling limit (theory)", "flat 64x64", "power:1 64x64", "power:2 64x64", "3.5 bits", "relative output error"] {
        assert!(table.contains(text), "{text}:\n{table}");
    }
}

#[test]
fn wrong_use_is_refused() {
    let f = Fixture::new();
    f.run(&["rd", "--spectrum", "round"]).fails(2, &["power:EXPONENT"]);
    f.run(&["rd", "--rates", "0.5"]).fails(2, &["1 to 8"]);
    f.run(&["rd", "--methods", "magic"]).fails(2, &["magic"]);
    f.run(&["rd", "--dead", "1"]).fails(2, &["share"]);
    f.run(&["rd", "--model", "model", "--spectrum", "flat"]).fails(2, &["--spectrum"]);
    f.run(&["rd", "--plot", "missing/gap.svg"]).fails(1, &["missing"]);
    f.run(&["rd", "--model", "model-ws3"]).fails(2, &["dense"]);
    let few = ["rd", "--model", "model", "--samples", "2", "--context", "32", "--methods", "rtn", "--rates", "3"];
    f.run(&[&few[..], &["--layers", "nothing"]].concat()).fails(1, &["nothing"]);
    f.run(&[&few[..], &["--text", "missing.txt"]].concat()).fails(1, &["missing.txt"]);
}
