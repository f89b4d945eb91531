//! Tests of building a model: split, features, train, evaluate, package and register, on generated photos
//! and, if they are available, on real ones.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::sandbox::{Sandbox, command_result, skip, snapshot};

/// Creates a project from the template, with generated photos and settings that keep tests fast.
pub fn small_project(count: u64) -> Sandbox {
    let sandbox = template_project(count);
    let params = sandbox
        .read("params.toml")
        .replace("count = 64", "count = 16")
        .replace("picture = 64", "picture = 32");
    sandbox.write("params.toml", params);
    sandbox
}

/// Creates a project from the unchanged template, with `count` generated photos of each class.
pub fn template_project(count: u64) -> Sandbox {
    let sandbox = Sandbox::empty();
    sandbox.git("init -q -b main");
    sandbox.ok("init --template pets");
    for number in 0..count {
        for pet in [mlx::demo_data::Pet::Cat, mlx::demo_data::Pet::Dog] {
            let photo = mlx::demo_data::photo(1, pet, number).unwrap();
            sandbox.write(&format!("data/{}/{number:04}.jpg", pet.name()), photo);
        }
    }
    sandbox
}

/// Returns each stage with its outcome, as in `split ran`.
fn outcomes(value: &Value) -> Vec<String> {
    let stages = value["stages"].as_array().unwrap_or_else(|| panic!("{value}"));
    stages
        .iter()
        .map(|stage| format!("{} {}", stage["name"].as_str().unwrap(), stage["outcome"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_model_is_built_registered_and_retrained_step_by_step() {
    let sandbox = small_project(60);
    sandbox.ok("add data/");
    let ran = sandbox.json("repro");
    assert_eq!(outcomes(&ran), ["split ran", "features ran", "train ran", "evaluate ran", "package ran"]);
    let metrics = sandbox.json("show metrics");
    let accuracy = metrics["metrics/test.json"]["accuracy"].as_f64().unwrap();
    assert!((0.6..=1.0).contains(&accuracy), "{metrics}");
    assert!(sandbox.fails("model register pets", 4).contains("is not committed"));
    sandbox.commit("first");
    let version = sandbox.json("model register pets");
    assert_eq!(version["version"], "pets@v0.1.0");
    assert!(sandbox.git("cat-file -t pets@v0.1.0").starts_with("tag"));
    let message = sandbox.git("tag -l --format=%(contents) pets@v0.1.0");
    assert!(
        message.contains(version["package"].as_str().unwrap())
            && message.contains("path = \"models/pets\"")
            && message.contains("accuracy = "),
        "{message}"
    );
    assert!(sandbox.fails("model register pets", 4).contains("already registered as `pets@v0.1.0`"));
    assert!(sandbox.fails("model register dogs", 3).contains("`mlx.toml` has no model `dogs`"));

    // A changed training parameter does not recompute features.
    let params = sandbox.read("params.toml").replace("[0.001, 0.01, 0.1, 1.0]", "[0.5]");
    sandbox.write("params.toml", params);
    let again = sandbox.json("repro");
    assert_eq!(
        outcomes(&again),
        ["split unchanged", "features unchanged", "train ran", "evaluate ran", "package ran"]
    );
    assert!(sandbox.fails("model register pets", 4).contains("is not committed"));
    sandbox.commit("second");
    assert_eq!(sandbox.json("model register pets")["version"], "pets@v0.2.0");
    let second = sandbox.git("tag -l --format=%(contents) pets@v0.2.0");
    assert!(second.contains("previous = \"pets@v0.1.0\""), "{second}");
    let versions = sandbox.json("model list pets");
    assert_eq!(versions["versions"].as_array().unwrap().len(), 2);
    assert_eq!(sandbox.json("model show pets")["version"], "pets@v0.2.0");

    // Lineage traces a registered package, which can be fetched even if the workspace has no copy.
    let chain = sandbox.json("lineage pets@v0.1.0");
    assert_eq!(
        (&chain["path"], &chain["stage"]["name"]),
        (&Value::from("models/pets"), &Value::from("package"))
    );
    assert_eq!(sandbox.json("lineage models/pets.onnx")["path"], "models/pets/model.onnx");
    fs::remove_dir_all(sandbox.repo.join("models")).unwrap();
    sandbox.ok("model get pets@v0.1.0 --out got");
    let text = sandbox.read("got/model.toml");
    assert!(
        text.contains("classes = [\"cat\", \"dog\"]")
            && text.contains("name = \"pixels\"")
            && !text.contains("commit")
    );
}

#[test]
fn the_same_photos_give_the_same_model_bit_for_bit() {
    let (one, two) = (small_project(20), small_project(20));
    for sandbox in [&one, &two] {
        sandbox.ok("add data");
    }
    one.ok("repro");
    let mut command = two.command(env!("CARGO_BIN_EXE_mlx"), &two.repo);
    let ran = command_result(
        command
            .env("RAYON_NUM_THREADS", "1")
            .env("LANG", "de_DE.UTF-8")
            .env("TZ", "Asia/Tokyo")
            .arg("repro")
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(one.read("mlx.lock"), two.read("mlx.lock"));
    assert_eq!(snapshot(&one.repo), snapshot(&two.repo));
}

#[test]
fn a_stage_run_by_another_version_of_mlx_runs_again() {
    let sandbox = small_project(10);
    sandbox.ok("add data");
    sandbox.ok("repro split");
    let lock = sandbox.read("mlx.lock");
    assert!(lock.contains("builtin = 1\n"));
    sandbox.write("mlx.lock", lock.replace("builtin = 1\n", "builtin = 0\n"));
    let plan = sandbox.json("repro split --dry-run");
    assert_eq!(plan["stages"][0]["why"][0], "this version of mlx gives other results for it");
}

/// Returns a tiny feature extractor as ONNX: the mean of each channel.
fn tiny_backbone() -> Vec<u8> {
    use mlx::model::{
        graph,
        onnx::{Node, Value},
    };

    let nodes = vec![
        Node::new("GlobalAveragePool", &["image"], "means", Vec::new()),
        Node::new("Flatten", &["means"], "features", Vec::new()),
    ];
    let mut model = graph::from_nodes(nodes, Vec::new(), 32);
    let inner = model.graph.as_mut().unwrap();
    inner.input = vec![Value::floats("image", &[Err("batch"), Ok(3), Ok(32), Ok(32)])];
    inner.output = vec![Value::floats("features", &[Err("batch"), Ok(3)])];
    graph::encode(&model)
}

#[test]
fn features_are_computed_once_per_image_and_backbone() {
    let sandbox = small_project(20);
    sandbox.write("net.onnx", tiny_backbone());
    let backbone = "file = \"net.onnx\"\nscale = [1.0, 1.0, 1.0]\nresize = 32\ncrop = 32\n";
    let params = sandbox.read("params.toml").replace("file = \"\" ", backbone);
    sandbox.write("params.toml", params);
    sandbox.ok("data split data");
    let computed = || {
        let report = sandbox.json("data features data");
        report["computed"].as_u64().unwrap_or_else(|| panic!("{report}"))
    };
    assert_eq!(computed(), 40);
    assert_eq!(computed(), 0);
    let photo = mlx::demo_data::photo(1, mlx::demo_data::Pet::Cat, 99).unwrap();
    sandbox.write("data/cat/new.jpg", photo);
    sandbox.ok("data split data");
    assert_eq!(computed(), 1, "of 41");
    let params = sandbox.read("params.toml").replace("[1.0, 1.0, 1.0]", "[2.0, 2.0, 2.0]");
    sandbox.write("params.toml", params);
    assert_eq!(computed(), 41, "other preprocessing, other features");
}

#[test]
fn a_damaged_photo_is_skipped_with_a_warning_and_counted() {
    let sandbox = small_project(20);
    sandbox.write("data/cat/0001.jpg", b"\xff\xd8\xff\xe0 no photo at all");
    sandbox.write("data/cat/notes.txt", "not a picture by its name");
    sandbox.ok("add data");
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("warning: `data/cat/0001.jpg` is skipped"), "{}", ran.err);
    assert!(
        ran.err.contains("1 file without an image extension") || ran.err.contains("1 file "),
        "{}",
        ran.err
    );
    assert_eq!(sandbox.json("show metrics")["metrics/test.json"]["pictures"]["damaged"], 1);
}

#[test]
fn too_few_photos_or_classes_are_refused() {
    let sandbox = small_project(20);
    fs::remove_dir_all(sandbox.repo.join("data/dog")).unwrap();
    assert!(sandbox.fails("data split data", 2).contains("`cat` is the only class"));
    for number in 3..20 {
        fs::remove_file(sandbox.repo.join(format!("data/cat/{number:04}.jpg"))).unwrap();
    }
    assert!(sandbox.fails("data split data", 2).contains("the class `cat` has 3 different images"));
    assert!(sandbox.fails("data split nothing", 3).contains("the folder `nothing` does not exist"));
    sandbox.write("params.toml", "[split]\nseed = 1\n");
    assert!(sandbox.fails("data split data", 2).contains("missing field `test`"));
    sandbox.write("params.toml", "");
    assert!(sandbox.fails("data split data", 3).contains("`params.toml` has no table `split`"));
}

/// Returns a Python interpreter that can import these modules: `MLX_PYTHON`, or `python3`.
pub fn python_with(modules: &str) -> Option<String> {
    let name = std::env::var("MLX_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imported = Command::new(&name).args(["-c", &format!("import {modules}")]).output();
    imported.is_ok_and(|output| output.status.success()).then_some(name)
}

const COMPARE: &str = "
import sys, json, numpy as np, onnxruntime as ort
pixels = np.fromfile(sys.argv[2], '<f4').reshape(json.loads(sys.argv[3]))
session = ort.InferenceSession(sys.argv[1])
print(json.dumps(session.run(['probabilities'], {'pixels': pixels})[0].tolist()))
";

/// Runs one tensor through the built-in engine and through ONNX Runtime in Python, and checks that the
/// results differ by less than 1e-4.
fn compare_engines(python: &str, model: &Path, photos: &Path, side: u32) {
    let settings = mlx::model::settings::Backbone { resize: side * 8 / 7, crop: side, ..Default::default() };
    let mut files: Vec<_> = walkdir::WalkDir::new(photos)
        .into_iter()
        .map(|file| file.unwrap())
        .filter(|file| file.file_type().is_file())
        .collect();
    files.sort_by(|a, b| a.path().cmp(b.path()));
    let mut tensor = Vec::new();
    let mut count = 0;
    for file in files.iter().step_by(files.len() / 8 + 1) {
        let image = mlx::model::preprocess::decode(&fs::read(file.path()).unwrap()).unwrap();
        tensor.extend(mlx::model::preprocess::planes(&image, &settings));
        count += 1;
    }
    let temp = tempfile::tempdir().unwrap();
    let saved = temp.path().join("tensor");
    fs::write(&saved, tensor.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let shape = format!("[{count}, 3, {side}, {side}]");
    let output =
        Command::new(python).args(["-c", COMPARE]).arg(model).arg(&saved).arg(&shape).output().unwrap();
    let theirs: Vec<Vec<f64>> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let theirs: Vec<f64> = theirs.into_iter().flatten().collect();
    let bytes = fs::read(model).unwrap();
    let ours = mlx::model::engine::builtin(&bytes, "pixels", "probabilities")
        .unwrap()
        .run(&tensor, side as usize)
        .unwrap();
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((f64::from(*ours) - theirs).abs() < 1e-4, "{ours} {theirs}");
    }
}

#[test]
fn onnx_runtime_gives_the_same_probabilities() {
    let Some(python) = python_with("onnxruntime, numpy") else {
        return skip(
            "onnx_runtime_gives_the_same_probabilities",
            "no Python with onnxruntime and numpy (MLX_PYTHON)",
        );
    };
    let sandbox = small_project(20);
    sandbox.ok("add data");
    sandbox.ok("repro");
    compare_engines(&python, &sandbox.repo.join("models/pets/model.onnx"), &sandbox.repo.join("data"), 32);
}

#[test]
fn real_photos_and_a_real_backbone_reach_97_percent() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let (photos, backbone) = (shared.join("data/pets"), shared.join("models/efficientnet-lite0.onnx"));
    if !photos.is_dir() || !backbone.is_file() {
        let why = "no photos and backbone in `../shared`, beside the checkout";
        return skip("real_photos_and_a_real_backbone_reach_97_percent", why);
    }
    let sandbox = Sandbox::empty();
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.root());
    command.args(["demo", "park", "--photos"]).arg(&photos).arg("--backbone").arg(&backbone);
    // The fast engine if Python has it, else the built-in one.
    match python_with("onnxruntime, numpy") {
        Some(python) => {
            let find = "import onnxruntime, glob, os; \
                print(glob.glob(os.path.dirname(onnxruntime.__file__) + '/capi/libonnxruntime.so*')[0])";
            let library = command_result(Command::new(&python).args(["-c", find]).output().unwrap()).out;
            command.env("ORT_DYLIB_PATH", library.trim());
        }
        None => drop(command.env("ORT_DYLIB_PATH", "none")),
    }
    let ran = command_result(command.output().unwrap());
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let expects = ran.err.find("This takes about ").expect(&ran.err);
    assert!(
        expects < ran.err.find("$ ").expect(&ran.err),
        "the expected result is printed before any command runs"
    );
    let park = sandbox.root().join("park");
    let metrics = sandbox.at(&park).json("show metrics pets@v0.1.0");
    let accuracy = &metrics["pets@v0.1.0"]["metrics/test.json"]["accuracy"];
    assert!(accuracy.as_f64().unwrap() >= 0.97, "{metrics}");
    if let Some(python) = python_with("onnxruntime, numpy") {
        compare_engines(&python, &sandbox.root().join("park/models/pets/model.onnx"), &photos, 224);
    }
}

#[test]
fn every_command_of_the_demo_works() {
    let sandbox = Sandbox::empty();
    let ran = command_result(
        sandbox
            .command(env!("CARGO_BIN_EXE_mlx"), &sandbox.root())
            .args(["demo", "park", "--count", "80"])
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    for line in [
        "$ mlx add data/",
        "$ mlx repro",
        "$ mlx model register pets",
        "$ mlx push",
        "$ mlx diff metrics",
        "pull",
    ] {
        assert!(ran.err.contains(line), "{line}\n{}", ran.err);
    }
    assert!(ran.out.contains("pets@v0.1.0 classifies the test photos with "));
    let park = sandbox.root().join("park");
    assert_eq!(sandbox.at(&park).json("status")["clean"], true);
    let again = sandbox.at(&sandbox.root()).fails("demo park", 4);
    assert!(again.contains("`park` already exists"), "{again}");
}
