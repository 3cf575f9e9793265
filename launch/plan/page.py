"""The style of the page of a plan: light, dark and print."""

STYLE = """\
:root {
  --ink: #1c2024; --soft: #5f6872; --paper: #ffffff; --line: #dfe3e8; --wash: #f5f7f9;
  --good: #12693a; --bad: #a8201a; --note: #8a5a00;
  --s0: #2f6db5; --s1: #e0812b; --s2: #3a9a6a; --s3: #b9496b; --s4: #7c62b8; --s5: #8a9099;
  --s6: #4fa9c4; --s7: #b99a2c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ec; --soft: #9aa4ae; --paper: #15181b; --line: #333a41; --wash: #1e2327;
    --good: #63c88f; --bad: #f0857c; --note: #e0b25a;
    --s0: #6ea3e6; --s1: #f0a45e; --s2: #66c295; --s3: #dd7f9d; --s4: #a793de; --s5: #a2a9b1;
    --s6: #7ccbe2; --s7: #d9bf62;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h1 small { color: var(--soft); font-size: 1.2rem; font-weight: 400; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.2rem; }
header p { margin: .4rem 0; color: var(--soft); }
header .verdict { margin-top: 1rem; font-size: 1.15rem; font-weight: 600; }
.good { color: var(--good) !important; }
.bad { color: var(--bad) !important; }
.note { border-left: 4px solid var(--note); padding: .5rem 1rem; background: var(--wash); }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 0; }
.figures div { flex: 1 1 9rem; padding: .7rem .9rem; background: var(--wash);
  border: 1px solid var(--line); border-radius: .4rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
svg { display: block; width: 100%; height: auto; }
td:first-child { overflow-wrap: normal; }
svg text { font-size: 13px; fill: var(--ink); }
svg.key { display: inline-block; width: .75em; height: .75em; margin-right: .5em; }
.frame { fill: none; stroke: var(--line); }
.limit { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); } .s3 { fill: var(--s3); }
.s4 { fill: var(--s4); } .s5 { fill: var(--s5); } .s6 { fill: var(--s6); } .s7 { fill: var(--s7); }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --wash: #fff;
    --good: #12693a; --bad: #a8201a; --note: #8a5a00;
    --s0: #2f6db5; --s1: #e0812b; --s2: #3a9a6a; --s3: #b9496b; --s4: #7c62b8; --s5: #8a9099;
    --s6: #4fa9c4; --s7: #b99a2c; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  section, figure, tr { break-inside: avoid; }
  rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
