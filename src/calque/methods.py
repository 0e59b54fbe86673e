"""Every method, one row each: its name, where its function is, what it does, and the paper it is from."""

_WECHSEL = "Minixhofer et al. 2022, arXiv:2112.06598"
_TRANS = "Remy et al. 2024, arXiv:2408.04303"
_FOCUS = "Dobler and de Melo 2023, arXiv:2305.14481"
_ILHARCO = "Ilharco et al. 2023, arXiv:2212.04089"
_TIES = "Yadav et al. 2023, arXiv:2306.01708"
_CRUMBS = "Davari and Belilovsky 2024, arXiv:2312.06795"
_LORA = "Hu et al. 2022, arXiv:2106.09685"
_UNIFIED = "He et al. 2022, arXiv:2110.04366"
_LAYERSWAP = "Bandarkar et al. 2025, arXiv:2410.01335"
_FAST_ALIGN = "Dyer et al. 2013, NAACL"

ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("data/corpus", "calque.data.prepare:corpus", "read, clean and split a text or parallel text", ""),
    ("data/align", "calque.data.align:lexicon", "word translations from parallel text", _FAST_ALIGN),
    (
        "vocab/tokenizer",
        "calque.vocab.tokenizer:train_tokenizer",
        "train or extend a tokenizer on a text",
        "",
    ),
    ("vocab/random", "calque.vocab.random:random", "new rows from Normal(mean, std): the floor", ""),
    ("vocab/mean", "calque.vocab.mean:mean", "new rows are the mean of all old rows", ""),
    ("vocab/overlap", "calque.vocab.overlap:overlap", "copy the rows of tokens with equal bytes", ""),
    ("vocab/subword", "calque.vocab.subword:subword", "new rows are the mean of their old pieces", ""),
    ("vocab/focus", "calque.vocab.focus:focus", "mix overlapping rows by auxiliary similarity", _FOCUS),
    ("vocab/wechsel", "calque.vocab.wechsel:wechsel", "mix rows by aligned static word vectors", _WECHSEL),
    ("vocab/transtoken", "calque.vocab.transtoken:transtoken", "mix rows by translation counts", _TRANS),
    (
        "merge/transplant",
        "calque.merge.transplant:transplant",
        "put a new vocabulary into a checkpoint",
        _TRANS,
    ),
    (
        "merge/calibrate",
        "calque.merge.calibrate:calibrate",
        "make new tokens as probable as they are frequent",
        "",
    ),
    ("merge/linear", "calque.merge.linear:linear", "weighted average", "Wortsman et al. 2022"),
    ("merge/task_arithmetic", "calque.merge.task_arithmetic:task_arithmetic", "add up differences", _ILHARCO),
    ("merge/slerp", "calque.merge.slerp:slerp", "go along the arc between two models", "Shoemake 1985"),
    ("merge/ties", "calque.merge.ties:ties", "trim over the whole model, elect signs, average", _TIES),
    ("merge/ties_per_tensor", "calque.merge.ties:ties_per_tensor", "ties, every tensor by itself", ""),
    (
        "merge/dare",
        "calque.merge.dare:dare",
        "drop changes at random, rescale the rest",
        "Yu et al. 2024 (DARE)",
    ),
    ("merge/della", "calque.merge.della:della", "drop small changes more often", "Deep et al. 2024"),
    ("merge/breadcrumbs", "calque.merge.breadcrumbs:breadcrumbs", "drop small changes and outliers", _CRUMBS),
    (
        "merge/model_stock",
        "calque.merge.model_stock:model_stock",
        "go as far as angles say",
        "Jang et al. 2024",
    ),
    ("merge/passthrough", "calque.merge.passthrough:passthrough", "stack layers", "Kim et al. 2024"),
    ("merge/pcb", "calque.merge.pcb:pcb", "weigh every parameter of every model", "Du et al. 2024"),
    ("merge/pcb_search", "calque.merge.pcb_search:pcb_search", "pcb with searched scales", "Du et al. 2024"),
    ("merge/widen", "calque.merge.widen:widen", "rank changes inside each model", "Yu et al. 2024 (WIDEN)"),
    (
        "merge/layerswap",
        "calque.merge.layerswap:layerswap",
        "outer layers of a language expert around a task expert",
        _LAYERSWAP,
    ),
    (
        "merge/layerswap_search",
        "calque.merge.layerswap_search:layerswap_search",
        "search the layers to swap on validation texts",
        _LAYERSWAP,
    ),
    ("merge/run", "calque.merge.run:run", "do what a mergekit YAML file says", ""),
    ("merge/fold", "calque.merge.fold:fold", "fold an adapter or a delta into its base", _LORA),
    (
        "merge/extract_lora",
        "calque.merge.extract_lora:extract_lora",
        "the difference of two checkpoints as a low-rank adapter",
        _LORA,
    ),
    (
        "merge/upcycle",
        "calque.merge.upcycle:upcycle",
        "dense to experts by language family in the last layers",
        "Zheng et al. 2025, arXiv:2410.10626",
    ),
    (
        "merge/recurse",
        "calque.merge.recurse:recurse",
        "tie layers into a loop with low-rank residuals",
        "Bae et al. 2025, arXiv:2410.20672",
    ),
    ("delta/lora", "calque.delta.lora:lora", "low-rank pairs at linear maps", _LORA),
    (
        "delta/shards",
        "calque.delta.shards:shards",
        "low-rank pairs made of shards that layers share",
        "Wang et al. 2025, arXiv:2410.00938",
    ),
    (
        "delta/depthwise",
        "calque.delta.depthwise:depthwise",
        "low-rank pairs at each depth of a looped model",
        "Bae et al. 2025, arXiv:2410.20672",
    ),
    (
        "delta/bottleneck",
        "calque.delta.bottleneck:bottleneck",
        "small networks after or beside the halves of a layer",
        "Houlsby et al. 2019, Pfeiffer et al. 2020",
    ),
    ("delta/prefix", "calque.delta.prefix:prefix", "trained keys and values before the text", _UNIFIED),
    (
        "delta/sparse",
        "calque.delta.sparse:sparse",
        "the weights that a training moved most, to train alone",
        "Ansell et al. 2022, arXiv:2110.07560",
    ),
    ("delta/mam", "calque.delta.mam:mam", "a prefix and scaled parallel networks", _UNIFIED),
    (
        "delta/mixture",
        "calque.delta.mixture:mixture",
        "deltas weighed by trained routers, or one for each language",
        "Li et al. 2023, arXiv:2308.06552",
    ),
    (
        "delta/stack",
        "calque.delta.stack:stack",
        "deltas on top of each other, of which the last trains",
        "Pfeiffer et al. 2020, arXiv:2005.00052",
    ),
    ("delta/export", "calque.delta.export:export", "a low-rank delta as an ordinary PEFT adapter", _LORA),
    ("delta/grid", "calque.grid:grid", "forms x places x budgets on one text, one table", _UNIFIED),
    ("train/lm", "calque.train.lm:lm", "continue causal language modelling on a text", _TRANS),
    (
        "train/denoise",
        "calque.train.denoise:denoise",
        "restore masked tokens or cut-out spans of a text",
        "Devlin et al. 2019, Raffel et al. 2020",
    ),
    ("train/tune", "calque.train.tune:tune", "tune on examples: answers, labels, spans, rankings", ""),
    ("evaluate/lm", "calque.evaluate.lm:lm", "bits per byte of held-out documents", ""),
    (
        "evaluate/generation",
        "calque.evaluate.generation:generation",
        "samples, and the time to write them",
        "",
    ),
    (
        "evaluate/tokenization",
        "calque.evaluate.tokenization:tokenization",
        "how a tokenizer serves a text",
        "",
    ),
    ("evaluate/floors", "calque.evaluate.floors:floors", "what no model at all would reach", ""),
    (
        "evaluate/vectors",
        "calque.evaluate.vectors:vectors",
        "is a translation the nearest vector? words and sentences, layer by layer",
        "Green et al. 2022, arXiv:2208.01018",
    ),
    (
        "evaluate/ranking",
        "calque.evaluate.ranking:ranking",
        "MAP, nDCG, MRR and recall of rankings, as trec_eval",
        "Buckley and Voorhees 2000",
    ),
    (
        "evaluate/forgetting",
        "calque.evaluate.forgetting:forgetting",
        "small classifiers: train on A, test on B, tune on B, test on A again",
        "Thangaraj et al. 2024, arXiv:2409.10965",
    ),
    ("evaluate/run", "calque.evaluate.run:run", "ask models the items of benchmarks", ""),
    ("evaluate/score", "calque.evaluate.score:score", "score answers that a file holds", ""),
    ("evaluate/compare", "calque.evaluate.compare:compare", "systems on common items, tested in pairs", ""),
    ("evaluate/export", "calque.evaluate.harness:export", "benchmarks as tasks of lm-eval", ""),
    ("evaluate/import", "calque.evaluate.harness:import_results", "results of lm-eval as a table", ""),
    ("analyze/diff", "calque.analyze.diff:diff", "what differs between two checkpoints", ""),
    ("analyze/shift", "calque.analyze.shift:shift", "where tuned models moved, layer by role", _LAYERSWAP),
)
