//! Tests `mlx explain` and `mlx lineage` of a request: the heat map, the nearest training images, and the
//! origin of the data.

use serde_json::json;

use crate::{
    sandbox::Sandbox,
    serve::{Server, registered},
};

#[test]
fn an_image_is_explained() {
    let sandbox: Sandbox = registered();
    let photo = mlx::demo_data::photo(7, mlx::demo_data::Pet::Dog, 1).unwrap();
    sandbox.write("photo.jpg", photo);
    let report = sandbox.json("explain photo.jpg --out seen/heat.png");
    assert_eq!(
        (&report["version"], &report["fill"], &report["side"]),
        (&json!("pets@v0.1.0"), &json!("blur"), &json!(32))
    );
    let class = report["class"].as_str().unwrap();
    assert_eq!(report["scores"][class], report["probability"]);
    let map = report["map"].as_array().unwrap();
    assert!(map.len() == map[0].as_array().unwrap().len() && map.len() > 5);
    let heat_map = image::open(sandbox.repo.join("seen/heat.png")).unwrap();
    assert!(heat_map.height() >= 448 && heat_map.width() > 2 * heat_map.height(), "{}", heat_map.width());
    sandbox.write("broken.jpg", "x");
    assert!(sandbox.fails("explain broken.jpg", 5).contains("cannot explain `broken.jpg`"));
    assert!(sandbox.fails("explain photo.jpg --version dogs", 3).contains("dogs"));
    assert!(sandbox.fails("explain photo.jpg --patch 2", 2).contains("the patch must be a share"));
    assert!(sandbox.fails("explain nothing.jpg", 3).contains("cannot read"));
    let nearest = report["nearest"].as_array().unwrap();
    assert_eq!(nearest.len(), 5);
    assert!(nearest[0]["picture"].as_str().unwrap().starts_with("data/"), "{report}");
    assert!(nearest[0]["distance"].as_f64() <= nearest[4]["distance"].as_f64());
}

#[test]
fn a_request_is_explained_and_traced_to_its_data() {
    let sandbox: Sandbox = registered();
    let mut running = Server::start(&sandbox, "serve pets@v0.1.0 --env production");
    let photo = mlx::demo_data::photo(7, mlx::demo_data::Pet::Dog, 1).unwrap();
    let answer = running.json("POST", "/classify", "X-Request-Id: asked-1\r\n", &photo);
    running.stop();
    let report = sandbox.json("explain asked-1");
    assert_eq!((&report["request"], &report["class"]), (&json!("asked-1"), &answer["class"]));
    let chain = sandbox.json("lineage asked-1");
    assert_eq!(
        (&chain["request"]["version"], &chain["request"]["class"]),
        (&json!("pets@v0.1.0"), &answer["class"])
    );
    assert_eq!((&chain["path"], &chain["stage"]["name"]), (&json!("models/pets"), &json!("package")));
    assert!(chain["inputs"].to_string().contains("\"path\":\"data\""), "{chain}");
    let text = sandbox.ok("lineage asked-1");
    assert!(text.starts_with("request asked-1") && text.contains("answered by pets@v0.1.0"), "{text}");
    assert!(sandbox.fails("lineage asked-2", 3).contains("`asked-2` is not tracked by mlx"));
    assert!(sandbox.fails("explain asked-2", 3).contains("asked-2"));
}
