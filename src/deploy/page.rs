//! Status page of the service at `/`: one HTML page for people, and the HTML escaping it needs.

use crate::deploy::ServedModel;

/// Values shown on the status page.
pub struct StatusView<'v> {
    pub served: &'v ServedModel,
    pub environment: &'v str,
    pub address: String,
    /// `ready`, `stopping` or `stuck`
    pub state: &'static str,
    /// Uptime in seconds.
    pub uptime: u64,
    /// Responses by status, such as `12 with 200`.
    pub responses: Vec<String>,
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:42em;margin:3em auto;padding:0 1em;\
color:#222;background:#fff}h1{font-size:1.5em}td{padding:.2em 1.5em .2em 0;vertical-align:top}\
td:first-child{color:#666}code{background:#f2f2f2;padding:.1em .3em;border-radius:3px;word-break:break-all}\
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}";

/// Renders the page. It has no scripts and reloads itself every five seconds.
pub fn status(view: &StatusView<'_>) -> String {
    let served = view.served;
    let (color, word) = (if view.state == "ready" { "#2a2" } else { "#c60" }, view.state);
    let rows = [
        ("environment", escape_html(view.environment)),
        ("model", format!("{} {}", escape_html(&served.model), escape_html(&served.number))),
        ("package", format!("<code>{}</code>", served.package)),
        ("classes", escape_html(&served.description.classes.join(", "))),
        ("engine", escape_html(&served.engine)),
        ("up for", format!("{} s", view.uptime)),
        ("waiting", served.batcher.waiting().to_string()),
        ("responses", view.responses.join(", ")),
    ];
    let rows: String =
        rows.iter().map(|(name, value)| format!("<tr><td>{name}<td>{value}")).collect::<Vec<_>>().join("\n");
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
<meta name=viewport content='width=device-width'><title>{model}: {word}</title><style>{STYLE}</style>\
<h1><span class=dot style='background:{color}'></span>{model} is {word}</h1><table>{rows}</table>\
<p>Try it: <code>curl --data-binary @photo.jpg http://{address}/classify</code>, or \
<code>/v2/models/{model}/infer</code>. \
Prometheus metrics: <a href=/metrics>/metrics</a>.",
        model = escape_html(&served.model),
        address = view.address,
    )
}

/// Escapes text for HTML content and for quoted attributes.
pub fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::test_service::{Gate, served};

    #[test]
    fn untrusted_names_are_escaped() {
        let served =
            served(&Gate::closed(), "<script>\"'&", ["<script>alert(1)</script>", "a'b\"c\\d\n</table>"]);
        let page = status(&StatusView {
            served: &served,
            environment: "<b>",
            address: "127.0.0.1:1".into(),
            state: "ready",
            uptime: 1,
            responses: Vec::new(),
        });
        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
        assert_eq!(page.matches("</table>").count(), 1);
        assert!(
            page.contains("&lt;script&gt;alert(1)&lt;/script&gt;, a&#39;b&quot;c\\d\n&lt;/table&gt;"),
            "{page}"
        );
    }
}
