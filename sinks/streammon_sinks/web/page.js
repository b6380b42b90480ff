// The page: asks for the overview whenever the stream says that it changed, and draws it.
// What users named (services, models, alerts) is only ever set as text, never as HTML.
"use strict";

const ASK_AT_LEAST_MS = 5000, ASK_AT_MOST_MS = 500, RETRY_MS = 2000, STALE_S = 30, SHOWN_TOGETHER = 6, MOST_SLICES = 6;

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// -- numbers for people ---------------------------------------------------------------------------------

const number = (value, digits = 3) => value === null || value === undefined ? "–"
  : value.toLocaleString("en", value >= 1e5 ? { notation: "compact", maximumSignificantDigits: 3 } : value >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits });
const percent = (value) => value === null ? "–" : `${number(100 * value, 2)} %`;
const latency = (seconds) => seconds === null ? "–" : seconds < 10 ? `${number(1000 * seconds)} ms` : `${number(seconds)} s`;
const clock = (unix) => new Date(1000 * unix).toLocaleTimeString("en-GB");

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return s < 86400 ? `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min` : `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

function moment(unix) {
  const date = new Date(1000 * unix), today = date.toDateString() === new Date().toDateString();
  return today ? clock(unix) : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${clock(unix)}`;
}

// -- health ---------------------------------------------------------------------------------------------

const LEVELS = { good: "✓ good", warn: "▲ watch", bad: "■ bad", unknown: "no data yet" };

function drawHealth(indicators) {
  $("health").replaceChildren(...indicators.map((each) => make("li",
    { className: each.level, title: each.rule, ariaDescription: each.rule },
    make("div", { className: "name" }, each.name),
    make("div", { className: "value" }, number(each.value), make("small", {}, each.value === null ? "" : ` ${each.unit}`)),
    make("div", { className: "level" }, LEVELS[each.level]))));
}

// -- alerts ---------------------------------------------------------------------------------------------

const SEVERITY = { critical: "bad", warning: "warn", info: "unknown" };

function safeLink(url) {
  try {
    return ["http:", "https:"].includes(new URL(url).protocol) ? make("a", { href: url, rel: "noreferrer" }, "runbook") : null;
  } catch { return null; }
}

function details(alert) {
  const parts = [], part = (name, ...content) => parts.push(make("dt", {}, name), make("dd", {}, ...content));
  const { resolution_steps: steps = [], escalation = [], evidence: { causes = [] } = {} } = alert;
  if (steps.length) part("What to do", make("ol", {}, ...steps.map((step) => make("li", {}, step))));
  if (causes.length) part("Likely causes", make("ol", {}, ...causes.map(({ what, why, score, lag_s: lag }) => make("li", {}, what,
    make("small", {}, [why, lag ? `${span(Math.abs(lag))} ${lag > 0 ? "before" : "after"}` : "", score === undefined ? "" : `score ${number(score, 2)}`].filter(Boolean).join(" · "))))));
  part("Condition", alert.condition);
  part("About", Object.entries(alert.labels).map(([name, value]) => `${name}=${value}`).join(", ") || "everything");
  if (alert.contact) part("Contact", alert.contact);
  if (escalation.length) part("Escalates to", escalation.join(", "));
  const link = alert.runbook_url ? safeLink(alert.runbook_url) : null;
  if (link) part("Read", link);
  part("Rule", `${alert.rule} · `, make("code", {}, alert.id.slice(0, 12)));
  const title = causes.length && steps.length ? "What to do, and likely causes" : causes.length ? "Likely causes" : steps.length ? "What to do" : "Details";
  return make("details", {}, make("summary", {}, title), make("dl", { className: "parts" }, ...parts));
}

const sameSeries = (alert) => [["rule", alert.rule], ...Object.entries(alert.labels)].map(([label, value]) => ({ label, operator: "=", value }));

function buttons(alert, deed, silenced) {
  if (!overview.can_act || alert.state === "resolved") return null;
  const can = ["firing", "no_data"].includes(alert.state) && !deed?.waiting;
  const ack = can && make("button", { type: "button", className: "main", onclick: ({ target }) => send(target, { type: "ack", alert_id: alert.id, transition: alert.transition },
    `Acknowledged: ${alert.summary}`) }, "Acknowledge");
  const silence = !silenced && make("button", { type: "button", title: "No notifications about this rule and series for an hour", onclick: ({ target }) => send(target,
    { type: "silence", matchers: sameSeries(alert), for_s: 3600 }, `Silenced for 1 h: ${alert.rule}`) }, "Silence 1 h");
  return make("div", { className: "buttons" }, ack || null, silence || null);
}

function alertItem(alert) {
  const over = alert.state === "resolved", deed = overview.acknowledged[alert.id], silenced = overview.silenced[alert.id];
  const until = overview.silences.find((silence) => silence.id === silenced)?.ends_unix_s;
  const worked = deed && make("div", { className: "quiet" }, `acknowledged by ${deed.by} at ${moment(deed.time_unix_s)}`, deed.note ? `: ${deed.note}` : "", deed.waiting ? " (the rules have yet to take note of it)" : "");
  const item = make("li", { className: `${over ? "resolved good" : SEVERITY[alert.severity]} ${alert.state === "acknowledged" ? "acknowledged" : ""} ${silenced ? "silenced" : ""}` },
    make("div", { className: "alert-line" },
      make("span", { className: "badge" }, over ? `resolved ${alert.severity}` : `${alert.severity} ${alert.state.replace("_", " ")}`),
      make("strong", {}, alert.summary), silenced ? make("span", { className: "tag" }, `silenced${until ? ` until ${moment(until)}` : ""}`) : null, make("span", { className: "quiet when" })),
    make("div", { className: "quiet" }, alert.condition, alert.contact ? ` · ${alert.contact}` : ""),
    worked ?? null,
    make("div", { className: "alert-foot" }, details(alert), buttons(alert, deed, silenced)));
  item.id = `alert-${alert.id}`;
  return item;
}

function drawAlerts({ alerts, alerts_left_out, now_unix_s, acknowledged, silenced, silences }) {
  const list = $("alerts"), key = JSON.stringify([alerts.map((alert) => [alert.id, alert.transition, acknowledged[alert.id], silenced[alert.id]]), silences, alerts_left_out]);
  if (list.dataset.key !== key) {  // what is open or has the focus stays so until something changes
    list.dataset.key = key;
    const open = new Set([...list.querySelectorAll("details[open]")].map((each) => each.closest("li").id));
    const focus = document.activeElement?.closest("#alerts > li")?.id;
    list.replaceChildren(...alerts.map(alertItem));
    for (const item of list.children) if (open.has(item.id)) item.querySelector("details").open = true;
    if (focus) $(focus)?.querySelector("summary").focus();
    if (!alerts.length) list.append(make("li", { className: "none" }, "No alerts"));
    if (alerts_left_out) list.append(make("li", { className: "none" }, `and ${alerts_left_out} older`));
    drawSilences();
  }
  alerts.forEach((alert, i) => {
    const lasted = span((alert.ended_unix_s ?? now_unix_s) - alert.started_unix_s);
    list.children[i].querySelector(".when").textContent =
      alert.state === "resolved" ? `ended ${moment(alert.ended_unix_s ?? alert.updated_unix_s)}, lasted ${lasted}` : `since ${moment(alert.started_unix_s)}, ${lasted}`;
  });
}

function drawSilences() {
  const { silences, silences_left_out: left } = overview;
  $("silences-section").hidden = !silences.length;
  $("silences").replaceChildren(...silences.map((silence) => make("li", {},
    make("code", {}, silence.matchers.join(", ")), make("span", { className: "quiet" }, `until ${moment(silence.ends_unix_s)}, by ${silence.by}${silence.note ? `: ${silence.note}` : ""}`),
    make("button", { type: "button", onclick: ({ target }) => send(target, { type: "unsilence", silence_id: silence.id }, `Lifted: ${silence.matchers.join(", ")}`) }, "Lift"))));
  if (left) $("silences").append(make("li", { className: "quiet" }, `and ${left} more: streammon silences`));
}

// -- acting ---------------------------------------------------------------------------------------------

const NAME = "streammon.name";

function me() {
  try { return localStorage.getItem(NAME); } catch { return null; }
}

function askName() {  // the name, or null if the person thought better of it
  const dialog = $("who");
  $("name").value = me() ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    const name = dialog.returnValue === "ok" ? $("name").value.trim() : "";
    if (name) try { localStorage.setItem(NAME, name); } catch { /* asked again next time */ }
    drawMe();
    resolve(name || null);
  }, { once: true }));
}

function drawMe() {
  $("me").hidden = !me();
  $("me").textContent = `acting as ${me()}`;
}

function say(text, bad) {
  Object.assign($("said"), { textContent: text, hidden: false, className: bad ? "bad" : "quiet" });
}

async function send(button, command, done) {
  const by = me() ?? await askName();
  if (!by) return;
  button.disabled = true;
  try {
    const answer = await fetch("/v1/commands", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...command, by }), signal: AbortSignal.timeout(15000) });
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `answered ${answer.status}`);
    say(done, false);
    ask();
  } catch (error) {
    say(`Not done: ${error.message}`, true);
    button.disabled = false;
  }
}

// -- charts ---------------------------------------------------------------------------------------------

// A line is [name, field, colour]; a chart's values are multiplied by `scale`.
const MODEL_CHARTS = [
  { title: "Latency", axis: "ms", scale: 1000, lines: [["p99", "p99_s", "third"], ["p90", "p90_s", "second"], ["p50", "p50_s", "first"]] },
  { title: "Throughput", axis: "requests/s", lines: [["requests", "throughput_per_s", "first"]] },
  { title: "Error rate", axis: "% of requests", scale: 100, lines: [["errors", "error_rate", "third"]] },
];
const HOST_CHARTS = [
  { title: "CPU", axis: "% of all cores", scale: 100, top: 100, lines: [["CPU", "cpu_utilization", "first"]] },
  { title: "Space in use", axis: "% of all", scale: 100, top: 100, lines: [["memory", "memory_utilization", "first"], ["file system /", "filesystem_utilization", "second"]] },
  { title: "Disk", axis: "bytes/s", si: true, lines: [["read", "disk_read_bytes_per_s", "first"], ["written", "disk_write_bytes_per_s", "second"]] },
  { title: "Network", axis: "bytes/s", si: true, lines: [["received", "network_receive_bytes_per_s", "first"], ["sent", "network_transmit_bytes_per_s", "second"]] },
];

// What was measured is a line, what was estimated before there were labels is dashed.
const HUES = ["first", "second", "third"];
const QUALITY_CHARTS = [
  { title: "Accuracy", axis: "% right", scale: 100, top: 100, zoom: true, lines: ({ versions }) => versions.slice(0, HUES.length).flatMap((version, i) => [
    { name: versionName(version), times: version.times_unix_s, values: version.accuracy, hue: HUES[i] },
    { name: `${versionName(version)}, estimated`, times: version.times_unix_s, values: version.estimated_accuracy, hue: HUES[i], dash: "dot" },
  ].filter(({ values }) => values.some((value) => value !== null))) },
];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const local = (unix) => new Date(1000 * unix - 60000 * new Date(1000 * unix).getTimezoneOffset()).toISOString().slice(0, -1);

function linesOf(chart, view, overview) {
  return typeof chart.lines === "function" ? chart.lines(view)
    : chart.lines.map(([name, field, hue]) => ({ name, times: overview.times_unix_s, values: view[field], hue }));
}

function drawChart(div, chart, view, overview) {
  const scale = chart.scale ?? 1, since = local(overview.times_unix_s[0]);
  const lines = linesOf(chart, view, overview).map(({ name, times, values, hue, dash }) => ({
    name, x: times.map(local), y: values.map((value) => value === null ? null : scale * value), mode: "lines", connectgaps: false,
    line: { color: colour(hue), width: 1.8, dash }, hovertemplate: chart.si ? "%{y:.3s}B/s" : `%{y:,.4~g} ${chart.axis}`,
  }));
  // A point between two gaps has no line to be seen by.
  const alone = ({ y }) => (value, i) => (y[i - 1] ?? null) === null && (y[i + 1] ?? null) === null ? value : null;
  const dots = lines.map((line) => ({ x: line.x, y: line.y.map(alone(line)), mode: "markers", marker: { color: line.line.color, size: 5 }, hoverinfo: "skip" }))
    .filter(({ y }) => y.some((value) => value !== null));
  const values = lines.flatMap((line) => line.y).filter((value) => value !== null), highest = Math.max(0, ...values);
  const lowest = chart.zoom ? Math.max(0, 10 * Math.floor((Math.min(90, ...values) - 2) / 10)) : 0;
  const text = { color: colour("quiet"), size: 12, family: "system-ui, sans-serif" };
  const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, fixedrange: true, tickfont: text };
  const layout = {
    margin: { l: 58, r: 10, t: 10, b: 26 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: text, dragmode: false,
    xaxis: { ...axis, type: "date", range: [since, local(overview.now_unix_s)], tickformat: "%H:%M", nticks: 6 },
    yaxis: { ...axis, range: [lowest, chart.top ?? (1.1 * highest || 1)], tickformat: chart.si ? "~s" : ",~r", nticks: 5, title: { text: chart.axis, font: text, standoff: 6 } },
    showlegend: false, hovermode: "x unified", hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { ...text, color: colour("ink") } },
  };
  div.ariaLabel = `${chart.title}, ${chart.axis}: ` + lines.map((line) => `${line.name} ${number(line.y.findLast((y) => y !== null) ?? null)}`).join(", ");
  return window.Plotly?.react(div, [...lines, ...dots], layout, { displayModeBar: false, responsive: true });
}

// -- models and machines --------------------------------------------------------------------------------

function figures({ newest, total, newest_unix_s }, { range_s, now_unix_s, step_s }) {
  const figure = (name, show, field) => make("div", {}, make("dt", {}, name),
    make("dd", {}, show(newest[field]), make("small", {}, `${show(total[field])} in ${span(range_s).replace(/ 0 (s|min)$/, "")}`)));
  const list = make("dl", { className: "figures" }, figure("p50", latency, "p50_s"), figure("p90", latency, "p90_s"), figure("p99", latency, "p99_s"),
    figure("requests/s", number, "throughput_per_s"), figure("errors", percent, "error_rate"));
  const age = now_unix_s - newest_unix_s;
  list.append(make("div", {}, make("dt", {}, "newest window"), make("dd", {}, clock(newest_unix_s), make("small", {}, age > STALE_S + step_s ? `${span(age)} ago` : "up to date"))));
  return list;
}

// -- the quality of models ------------------------------------------------------------------------------

const MEASURES = { accuracy: "accuracy", estimated_accuracy: "accuracy", mae: "mean error", f1: "F1", auc: "AUC", log_loss: "log loss", calibration_error: "calibration error", rmse: "RMSE" };
const SHARES = ["accuracy", "estimated_accuracy", "precision", "recall", "f1"];
const measureName = (name) => MEASURES[name] ?? name;
const share = (value) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
const amount = (name, value) => SHARES.includes(name) ? share(value) : number(value);
const between = (name, low, high) => low === null || high === null ? "" : SHARES.includes(name) ? `${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)} %` : `${number(low)} to ${number(high)}`;
const differences = (name, low, high) => between(name, low, high).replaceAll("-", "−").replace(" %", "");
const signed = (name, value) => `${value < 0 ? "−" : "+"}${SHARES.includes(name) ? `${Math.abs(100 * value).toFixed(1)} points` : number(Math.abs(value))}`;
const versionName = ({ version }) => version ?? "no version";
const pairs = (labels) => Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(", ");

const row = (...cells) => make("tr", {}, ...cells.map((cell) => cell instanceof Node && cell.tagName === "TD" ? cell : make("td", {}, ...[cell].flat())));
const quiet = (text) => make("small", {}, text);

function table(heads, rows) {
  return make("table", { className: "facts" }, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
}

function versionsTable({ versions, versions_left_out: left }) {
  if (!versions.length) return "";
  const named = versions.find(({ measured }) => measured)?.measured.name ?? "accuracy";
  const rows = versions.map(({ version, measured, others, labelled, estimated, coverage, label_delay_s: delay }, i) => row(
    [make("span", { className: `key ${HUES[i] ?? ""}` }), make("strong", {}, version ?? "no version")],
    measured ? [make("strong", {}, amount(measured.name, measured.value)), quiet(between(measured.name, measured.low, measured.high))] : quiet("no labels yet"),
    estimated ? [make("em", { title: "From the model's confidence alone, before labels come: not a measurement" }, `≈ ${share(estimated.value)}`), quiet(between("accuracy", estimated.low, estimated.high))] : "–",
    quiet(Object.entries(others).slice(0, 4).map(([name, value]) => `${measureName(name)} ${amount(name, value)}`).join(" · ") || "–"),
    [coverage === null ? "–" : share(coverage), quiet(labelled ? `${number(labelled)} labels` : "")],
    delay === null ? "–" : delay < 60 ? `${number(delay, 2)} s` : span(delay), measured ? moment(measured.end_unix_s) : "–"));
  const listed = table(["Version", `${measureName(named)[0].toUpperCase()}${measureName(named).slice(1)}, measured`, "Accuracy, estimated", "Also measured", "Have labels", "Label delay", "Measured until"], rows);
  return make("div", { className: "scroll" }, listed, left ? quiet(`and ${left} older versions`) : null);
}

function bar({ effect, threshold, drifted }) {  // the mark in the middle is the threshold
  const part = threshold > 0 ? Math.min(1, Math.max(0, effect / threshold / 2)) : 0;
  const inner = make("span", { className: "fill" });
  inner.style.width = `${100 * part}%`;
  return make("span", { className: `bar ${drifted ? "bad" : "good"}`, ariaHidden: "true" }, inner);
}

const targetState = ({ drifted, reason, effect, threshold }) => drifted ? "drifted" : reason ? `not tested: ${reason.replaceAll("_", " ")}` : effect < threshold ? "as before" : "may be chance";

function driftPart({ drift, drifted, tested, whole }) {
  if (!tested && !whole.length) return null;
  const rows = drift.map((target) => row(
    [make("span", { className: `state ${target.drifted ? "bad" : target.reason ? "unknown" : "good"}` }, target.drifted ? "■ " : target.reason ? "– " : "✓ "), make("strong", {}, target.target),
      quiet([targetState(target), target.detector, target.version].filter(Boolean).join(" · "))],
    [bar(target)], [number(target.effect), quiet(`of ${number(target.threshold)}`)]));
  for (const [i, target] of drift.entries()) rows[i].title = `${target.detector} of ${number(target.sample_size)} values until ${moment(target.end_unix_s)}${target.reference ? `, against ${target.reference}` : ""}`;
  const against = ({ reference }) => reference ? `, against ${reference.length > 24 ? `${reference.slice(0, 20)}…` : reference}` : "";
  return part("Drift", tested ? `${drifted} of ${tested} drifted` : "", tested ? table(["What", "Effect and threshold", ""], rows) : null,
    tested > drift.length ? quiet(`and ${tested - drift.length} more: streammon query drift`) : null,
    ...whole.map((all) => quiet(`${versionName(all)}: ${all.reason ? targetState(all) : `${share(all.effect)} of its targets by weight, ${all.drifted ? "■ drifted" : "as before"} (up to ${share(all.threshold)})`}, until ${moment(all.end_unix_s)}${against(all)}`)));
}

function slicesPart({ versions }) {
  const slices = versions.flatMap((version) => version.slices.map((slice) => ({ ...slice, version }))).sort((a, b) => b.sure - a.sure).slice(0, MOST_SLICES);
  const rows = slices.map((slice) => row([make("strong", {}, pairs(slice.slice)), quiet(versionName(slice.version))],
    [amount(slice.measure, slice.value), quiet(`${number(slice.labelled)} labels`)],
    [make("span", { className: `state ${slice.sure ? "warn" : "unknown"}` }, signed(slice.measure, slice.disparity)), quiet(differences(slice.measure, slice.low, slice.high))]));
  return rows.length ? part("Slices", "against everybody else", table(["Those with", "Measured", "Difference"], rows)) : null;
}

const OUTCOMES = { helped: "good", no_change: "unknown", worse: "bad", failed: "bad", timed_out: "warn", expired: "warn" };

function loopsPart({ loops, loops_left_out: left }) {
  if (!loops.length) return null;
  return part("Retraining", "", make("ul", { className: "loops" }, ...loops.map((loop) => make("li", {},
    make("span", { className: `state ${loop.outcome ? OUTCOMES[loop.outcome] ?? "unknown" : "warn"}` }, (loop.outcome ?? loop.state).replaceAll("_", " ")),
    [loop.old_version, loop.new_version].filter(Boolean).join(" → "), quiet(`asked for at ${moment(loop.requested_unix_s)}${loop.because ? `: ${loop.because}` : ""}`),
    loop.measure ? quiet(`${measureName(loop.measure)} ${signed(loop.measure, loop.difference)} (${differences(loop.measure, loop.low, loop.high)})`) : null,
    loop.why ? quiet(loop.why) : null))), left ? quiet(`and ${left} more: streammon query loop`) : null);
}

const part = (title, note, ...content) => make("div", { className: "part" }, make("h4", {}, title, quiet(note)), ...content.filter(Boolean));

function drawQuality(card, view) {
  const lines = linesOf(QUALITY_CHARTS[0], view, overview), [chart] = card.querySelectorAll(".chart");
  chart.hidden = !lines.length;
  chart.querySelector("h4").replaceChildren("Accuracy", ...lines.filter(({ dash }) => !dash).map(({ name, hue }) => make("span", { className: `legend ${hue}` }, name)),
    lines.some(({ dash }) => dash) ? quiet("dotted: estimated") : "");
  const columns = card.querySelector(".charts");
  if (columns.children.length === 1) columns.replaceChildren(make("div", { className: "column" }, chart), make("div", { className: "column" }));
  card.querySelectorAll(".part").forEach((old) => old.remove());
  columns.firstChild.append(...[slicesPart(view), loopsPart(view)].filter(Boolean));
  columns.lastChild.append(...[driftPart(view)].filter(Boolean));
  columns.firstChild.hidden = chart.hidden && columns.firstChild.children.length === 1;
}

const GROUPS = {
  quality: { charts: QUALITY_CHARTS, name: (view) => [view.service, view.model].filter((each) => each !== null).join(" / "), figures: versionsTable, left: "quality_left_out", more: drawQuality, wide: true },
  models: { charts: MODEL_CHARTS, name: (view) => `${view.service} / ${view.model}`.replaceAll("__other__", "all others"), figures, left: "models_left_out" },
  hosts: { charts: HOST_CHARTS, name: (view) => view.name, figures: () => "", left: "hosts_left_out", wide: true },
};

function drawGroup(id, overview) {
  const { charts, name, figures: figuresOf, left, more } = GROUPS[id], views = overview[id], filter = $(`${id}-filter`);
  const names = views.map(name), chosen = names.includes(filter.value) ? filter.value : "";
  $(`${id}-section`).hidden = !views.length;
  filter.parentNode.hidden = views.length < 2;
  if (filter.dataset.key !== names.join("\n")) {
    filter.dataset.key = names.join("\n");
    const all = views.length + overview[left];
    filter.replaceChildren(make("option", { value: "" }, all > SHOWN_TOGETHER ? `${SHOWN_TOGETHER} of ${all}` : `all ${all}`), ...[...names].sort().map((each) => make("option", { value: each }, each)));
    filter.value = chosen;
  }
  const shown = views.filter((_, i) => chosen ? names[i] === chosen : i < SHOWN_TOGETHER);
  const cards = new Map([...$(id).children].map((card) => [card.dataset.name, card]));
  const wanted = shown.map((view) => cards.get(name(view)) ?? makeCard(id, name(view), charts));
  for (const card of $(id).children) if (!wanted.includes(card)) { card.querySelectorAll(".js-plotly-plot").forEach((plot) => Plotly.purge(plot)); }
  if (wanted.length !== $(id).children.length || wanted.some((card, i) => card !== $(id).children[i])) $(id).replaceChildren(...wanted);
  shown.forEach((view, i) => {
    wanted[i].querySelector(".numbers").replaceChildren(figuresOf(view, overview));
    wanted[i].classList.toggle("stale", overview.now_unix_s - view.newest_unix_s > STALE_S + overview.step_s);
    more?.(wanted[i], view);
    wanted[i].querySelectorAll(".plot").forEach((div, c) => { if (!div.parentNode.hidden) drawChart(div, charts[c], view, overview); });
  });
}

function makeCard(id, name, charts) {
  const legend = ([line, , hue]) => make("span", { className: `legend ${hue}` }, line);
  const card = make("article", { className: `card ${GROUPS[id].wide ? "wide" : ""}` }, make("h3", {}, name), make("div", { className: "numbers" }),
    make("div", { className: "charts" }, ...charts.map(({ title, lines }) => make("div", { className: "chart" },
      make("h4", {}, title, ...(Array.isArray(lines) && lines.length > 1 ? lines.map(legend) : [])), make("div", { className: "plot", role: "img" })))));
  card.dataset.name = name;
  return card;
}

// -- keeping it up to date ------------------------------------------------------------------------------

let overview = null, asking = false, wanted = false;

function draw() {
  if (!overview) return;
  drawHealth(overview.indicators);
  drawAlerts(overview);
  drawGroup("models", overview);
  drawGroup("quality", overview);
  drawGroup("hosts", overview);
  $("hosts-line").textContent = overview.hosts.map((host) => host.name).join(", ");
  $("updated").textContent = `updated ${clock(overview.now_unix_s)}`;
  $("components").textContent = Object.entries(overview.components).map(([name, state]) => `${name}: ${state}`).join(" · ");
  const range = $("range").selectedOptions[0].text, { latest_unix_s: latest, complete_since_unix_s: since } = overview;
  $("waiting").hidden = overview.models.length + overview.quality.length + overview.hosts.length > 0;
  $("waiting").textContent = latest === null ? "Waiting for the first window…" : `No windows in the last ${range}; the newest ended at ${moment(latest)}.`;
  $("cut").hidden = since === null;
  $("cut").textContent = since === null ? "" : `There are too many windows to show all: charts and counts start at ${moment(since)}.`;
}

async function ask() {
  if (asking || document.hidden) { wanted = true; return; }
  [asking, wanted] = [true, false];
  const range = $("range").value;
  try {
    const answer = await fetch(`/api/overview?range_s=${range}`, { signal: AbortSignal.timeout(30000) });
    if (!answer.ok) throw new Error(await answer.text());
    overview = await answer.json();
    $("banner").hidden = true;
    if (range === $("range").value) draw(); else wanted = true;
  } catch (error) {
    $("banner").textContent = `No connection to streammon (${error.message}). Trying again…`;
    $("banner").hidden = false;
    setTimeout(ask, RETRY_MS);
  } finally {
    setTimeout(() => { asking = false; if (wanted) ask(); }, ASK_AT_MOST_MS);
  }
}

function listen() {
  const stream = new EventSource("/api/stream");
  stream.addEventListener("changed", ask);
  stream.onerror = () => {
    ask();  // says so if the connection is lost
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5 * RETRY_MS);
  };
}

for (const id of ["range", "models-filter", "quality-filter", "hosts-filter"]) $(id).addEventListener("change", id === "range" ? ask : draw);
$("me").addEventListener("click", askName);
$("who-cancel").addEventListener("click", () => $("who").close());
drawMe();
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
setInterval(ask, ASK_AT_LEAST_MS);
ask().then(() => {  // the charts' 5 MB come after what can be read without them
  document.head.append(make("script", { src: document.documentElement.dataset.plotly, onload: draw }));
});
listen();
