"""How the page looks: colours of both schemes, and the style sheet. Every colour stands here once.

A test computes the contrast of each pair of text and ground: 4.5 to 1 for text, 3 to 1 for lines
and marks (WCAG 2.2, level AA).
"""

LIGHT = {
    "ground": "#ffffff", "panel": "#f4f6f8", "text": "#1a1f26", "soft": "#525b67", "line": "#d4dae1",
    "link": "#0a55b8", "good": "#116329", "bad": "#a5261c",
    "s0": "#0a55b8", "s1": "#a63d00", "s2": "#116329", "s3": "#6f3cc4", "s4": "#00646f", "s5": "#9b1d64",
}  # fmt: skip
DARK = {
    "ground": "#11151b", "panel": "#1a2029", "text": "#e7ebf0", "soft": "#a5b0bd", "line": "#36404d",
    "link": "#84bcff", "good": "#7fdc9a", "bad": "#ff9d92",
    "s0": "#84bcff", "s1": "#ffb27a", "s2": "#7fdc9a", "s3": "#cbb0ff", "s4": "#6fd6e0", "s5": "#ff9fcf",
}  # fmt: skip
SERIES = 6
# So that curves differ without colour as well.
DASHES = ("none", "7 4", "2 4", "11 4 2 4", "4 3", "14 5")
TEXT_ON_GROUND = [
    (text, ground) for text in ("text", "soft", "link", "good", "bad", *(f"s{n}" for n in range(SERIES)))
    for ground in ("ground", "panel")
]  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


SHEET = (
    f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
"""
    + """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,"Segoe UI",Roboto,sans-serif;margin:0;background:var(--ground);color:var(--text)}
.page{max-width:72rem;margin:0 auto;padding:1rem 1.25rem 4rem}
h1{font-size:1.05rem;font-weight:600;margin:.2rem 0;color:var(--soft);overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:2.6rem 0 .6rem;padding-top:.4rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.4rem 0 .3rem;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:46rem}
.lead{font-size:clamp(1.35rem,4.2vw,2rem);line-height:1.25;font-weight:600;max-width:46rem;margin:.6rem 0;
 text-wrap:balance}
.then{font-size:1.08rem;max-width:46rem}
.soft,figcaption,small{color:var(--soft);font-size:.875rem}
.good{color:var(--good)}.bad{color:var(--bad)}
.one{white-space:nowrap}.any{display:inline-block;min-width:7rem;overflow-wrap:anywhere}
a,summary{color:var(--link)}summary{cursor:pointer;padding:.2rem 0}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:2px}
nav{position:sticky;top:0;background:var(--ground);padding:.45rem 0;margin-top:.8rem;z-index:3;
 display:flex;gap:.2rem 1.1rem;overflow-x:auto;white-space:nowrap;border-bottom:1px solid var(--line);font-size:.92rem}
section{scroll-margin-top:3rem}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.32rem .9rem .32rem 0;overflow-wrap:break-word;max-width:22rem;
 border-bottom:1px solid var(--line);text-align:left;vertical-align:middle}
th{font-weight:600}thead th{color:var(--soft);font-size:.875rem;font-weight:500}
td.n,th.n{text-align:right}
tr.main th,tr.main td{font-weight:700}
.whisker{width:min(11rem,40vw);height:1.1rem;display:block}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1.2rem 2rem}
figure{margin:.8rem 0}
.plot{position:relative;margin:.3rem .6rem 1.7rem 3.4rem;height:var(--h,11rem);
 border-left:1px solid var(--line);border-bottom:1px solid var(--line)}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot span{position:absolute;font-size:.78rem;color:var(--soft);white-space:nowrap;line-height:1}
.plot .y{right:calc(100% + .35rem);transform:translateY(-50%)}
.plot .x{top:calc(100% + .35rem);transform:translateX(-50%)}
.plot .x.last{transform:translateX(-100%)}
.plot .x.first{transform:none}
.plot .band{transform:none;padding:.15rem .3rem;font-size:.75rem;overflow:hidden;text-overflow:ellipsis}
.plot line.g,.plot path.g{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.plot polyline{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.plot.phases{border:0;margin-bottom:.4rem}.plot .bar{
 height:1.05rem;border-radius:2px;background:var(--panel);border-left:3px solid var(--s3)}
.plot polyline.faint{stroke-width:1;opacity:.55}
.key{display:inline-flex;gap:.2rem 1rem;flex-wrap:wrap;font-size:.85rem;margin-left:.2rem}
.key b{font-weight:500;display:inline-flex;align-items:center;gap:.35rem}
.key svg{width:1.7rem;height:.6rem}
.bars{list-style:none;padding:0;margin:.6rem 0;columns:20rem;column-gap:2.2rem}
.bars li{break-inside:avoid;padding:.22rem 0;font-size:.9rem}
.bars .top{display:flex;justify-content:space-between;gap:.8rem;overflow-wrap:anywhere}
.bars svg{display:block;width:100%;height:.7rem}.bars line{vector-effect:non-scaling-stroke}
.bars small{display:block;font-size:.8rem}
.matrix{display:grid;grid-template-columns:minmax(0,26rem) minmax(0,1fr);gap:1rem 2rem;align-items:start}
@media(max-width:56rem){.matrix{grid-template-columns:minmax(0,1fr)}}
.over{max-width:26rem;border:1px solid var(--line);touch-action:manipulation;cursor:crosshair}
.over svg{display:block;width:100%;height:auto}
.over .ring{fill:none;stroke:var(--text);stroke-width:2;vector-effect:non-scaling-stroke}
.lens{overflow-x:auto}
.cells{font-size:.82rem}
.cells th,.cells td{padding:.16rem .35rem;border:1px solid var(--line)}
.cells td{text-align:center;min-width:2rem;height:1.7rem}
.cells thead th{vertical-align:bottom;height:7.5rem;padding:0;width:2rem;min-width:2rem;position:relative}
.cells thead th i{position:absolute;left:.5rem;bottom:.3rem;writing-mode:vertical-rl;transform:rotate(180deg);
 font-style:normal;max-height:7rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;color:var(--text)}
.cells tbody th{max-width:9.5rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-weight:500}
.cells .here{outline:3px solid var(--link);outline-offset:-3px}
.all{overflow:auto;max-height:80vh}
.all thead th{position:sticky;top:0;background:var(--ground);z-index:2}
.all tbody th{position:sticky;left:0;background:var(--ground);z-index:1}
.all tr:hover td,.all tr:hover th{background-color:var(--panel)}
.strips{display:grid;grid-template-columns:auto repeat(var(--n),minmax(4.6rem,1fr));gap:3px;overflow-x:auto;
 max-width:56rem;align-items:center}
.strips img{width:100%;display:block}.strips span{font-size:.78rem;color:var(--soft);padding-right:.5rem}
.strips .t{text-align:center;padding:0}
.example{border-top:1px solid var(--line);padding-top:.2rem;margin-top:1.4rem}
.tag{display:inline-block;border:1px solid currentColor;border-radius:.7rem;padding:0 .6rem;font-size:.82rem}
.wheel{display:flex;gap:.8rem;align-items:center}.wheel img{width:72px;height:72px}
.box{border:1px solid var(--line);background:var(--panel);border-radius:.5rem;padding:.6rem 1.1rem;margin:1rem 0}
pre.run{white-space:pre-wrap;overflow-wrap:anywhere}
pre{overflow-x:auto;font-size:.84rem;line-height:1.45;margin:.5rem 0}
code{font-size:.92em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem 1.1rem;margin:.5rem 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:34rem){th,td{padding-right:.55rem;font-size:.88rem}.any{min-width:4rem}}
@media(max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{nav,.zoomed{display:none}body{font-size:11pt}.page{max-width:none;padding:0}
 section,figure,.example{break-inside:avoid-page}.all{max-height:none;overflow:visible}a{color:inherit}
 *{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
@media(prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
"""
)
