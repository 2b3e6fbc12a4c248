"""The style sheet of the audit's page: light and dark, on paper, and with contrast of at least 4.5 to 1 (WCAG AA)."""

STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1b1f23; --soft: #57606a; --line: #d0d7de; --box: #f6f8fa;
  --pass: #0b5a2a; --pass-bg: #e7f6ec; --fail: #8c1810; --fail-bg: #fdecea; --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --fg: #e6e9ec; --soft: #a5afb9; --line: #3a4149;
  --box: #1d2226; --pass: #7fe0a3; --pass-bg: #10291a; --fail: #ffb1a8; --fail-bg: #351513; --link: #8ec1ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 1.05rem/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
.kicker { margin: 0; color: var(--soft); letter-spacing: .04em; }
h1 { margin: 0 0 1rem; font-size: 2rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.4rem; line-height: 1.3; }
h3 { margin: 0 0 .5rem; font-size: 1.15rem; }
p { margin: .5rem 0; max-width: 44rem; }
.verdict { padding: 1rem 1.25rem; border: 1px solid; border-left-width: .5rem; border-radius: .4rem; }
.verdict h2 { margin: 0; }
.pass { border-color: var(--pass); background: var(--pass-bg); } .pass h2 { color: var(--pass); }
.fail { border-color: var(--fail); background: var(--fail-bg); } .fail h2 { color: var(--fail); }
article { margin: 1rem 0; padding: 1rem 1.25rem; border: 1px solid var(--line); border-radius: .4rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; } tbody th { font-weight: 600; }
details { margin: .25rem 0; } summary { color: var(--link); cursor: pointer; }
summary:focus-visible, [tabindex]:focus-visible { outline: .15rem solid var(--link); outline-offset: .1rem; }
details[open] > summary { margin-bottom: .25rem; }
dl { margin: .25rem 0 .5rem; padding: .5rem .75rem; background: var(--box); border-radius: .3rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0 0 .4rem; overflow-wrap: anywhere; } dd ol, dd ul { margin: 0; }
code, pre { font: .85em/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { margin: 0; white-space: pre-wrap; }
@media print { body { background: #fff; color: #000; font-size: 10pt; } main { max-width: none; padding: 0; }
  article { break-inside: avoid-page; } details::details-content { content-visibility: visible; block-size: auto; } }
"""
