#!/usr/bin/env python3
"""Times wsrun and llama.cpp in alternation on this CPU: random weights of a published shape, or a real GGUF file against a packed model.

llama.cpp is the one of llama-cpp-python, built from source for this CPU on the first call (a C++ compiler is needed, and 5 to 15 minutes) into
${WSRUN_HOME:-~/.cache/wsrun}/peers/. Each measurement is a process of its own that loads the model, does everything once untimed and then once
timed, greedy, for wsrun and for llama.cpp alike. The time of a layer is the difference of two layer counts, so embedding and head drop out.
"""
import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("WSRUN_HOME") or Path.home() / ".cache" / "wsrun") / "peers"
PACKAGES = ["llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.2.6"]
# What llama.cpp is built with where less than all of this CPU is wanted: as on CPUs without AVX-512, older ones and today's.
ISAS = {"avx2": ["SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C"]}
ISAS["avx2-gfni"] = [*ISAS["avx2"], "AVX_VNNI"]
# What a rate is compared with, by whole bits: Q2_K has 2.6 bits a weight, IQ2_XXS 2.1, Q3_K 3.4, Q4_0 and Q4_K 4.5. llama.cpp rearranges
# Q2_K, Q4_0 and Q4_K for the CPU when it loads them; without that (its --no-repack), it has another, faster prefill for Q2_K and Q4_K.
PEERS = {2: ["Q2_K", "Q2_K --no-repack", "IQ2_XXS"], 3: ["Q3_K"], 4: ["Q4_0", "Q4_0 --no-repack", "Q4_K", "Q4_K --no-repack"]}
# Where a block has its f16 scales, as (byte offset, scale): random quants then have an r.m.s. of about 0.02. All other bytes are random.
SCALES = {
    "Q2_K": [(80, 2e-3), (82, 3e-3)],
    "IQ2_XXS": [(0, 5e-4)],
    "Q3_K": [(108, 5e-4)],
    "Q4_0": [(0, 4e-3)],
    "Q4_K": [(0, 1e-4), (2, 7.5e-4)],
    "Q8_0": [(0, 3e-4)],
}
SHORT_PROMPT = 8
EXAMPLES = """examples:
  compare-llama-cpp.py --shape llama3.2-1b --layers 4,12
  compare-llama-cpp.py --shape llama3-8b --layers 2,6 --rates 2 --threads 1 --json figures.json
  compare-llama-cpp.py --shape llama3.2-1b --isa avx2 --effort light
  compare-llama-cpp.py --gguf model.Q4_1.gguf --model ./model-ws3"""


class Failure(Exception):
    """What the user can mend; the text says how."""


def note(text):
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def cpu(field):
    """A field of the first processor in /proc/cpuinfo, "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def build_options(isa):
    """What llama.cpp is built with."""
    if not isa:
        return "-DGGML_NATIVE=ON"
    return " ".join(["-DGGML_NATIVE=OFF", *(f"-DGGML_{feature}=ON" for feature in ISAS[isa])])


def compiler_flags():
    """Those of the environment. With AMX, GCC takes the tile configuration of llama.cpp for a dead store (github.com/ggml-org/llama.cpp/pull/26954), and Q4_0, Q4_K and others end with an illegal
    instruction."""
    flags = os.environ.get("CXXFLAGS", "")
    if "amx_int8" in cpu("flags").split() and "clang" not in os.environ.get("CXX", ""):
        flags += " -fno-tree-dse -fno-dse"
    return flags.strip()


def enter_environment(isa):
    """Runs this script again with the Python that has the packages; builds them first if they are not there for this CPU, or the instructions that are wanted of it."""
    folder = HOME / (f"venv-{isa}" if isa else "venv")
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    python, stamp, log = folder / "bin" / "python", folder / "built-for", HOME / "install.log"
    built_for = "\n".join([*PACKAGES, platform.machine(), cpu("flags"), compiler_flags()])
    if not stamp.exists() or stamp.read_text() != built_for:
        if not any(shutil.which(name) for name in [os.environ.get("CXX", "c++"), "g++", "clang++"]):
            raise Failure("a C++ compiler is needed to build llama.cpp: apt-get install build-essential")
        note(f"building {', '.join(PACKAGES)} for {isa or 'this CPU'}, 5 to 15 minutes; log: {log}")
        HOME.mkdir(parents=True, exist_ok=True)
        try:
            venv.create(folder, clear=True, with_pip=True)
        except subprocess.CalledProcessError:
            raise Failure("Python cannot make a virtual environment: apt-get install python3-venv") from None
        # A wheel in the cache of pip may have been built for another CPU.
        command = [python, "-m", "pip", "install", "--no-cache-dir", "--no-binary", "llama-cpp-python", *PACKAGES]
        with open(log, "w") as out:
            own = {"CMAKE_ARGS": build_options(isa), "CXXFLAGS": compiler_flags()}
            done = subprocess.run(command, env={**os.environ, **own}, stdout=out, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise Failure(f"the build of llama.cpp failed; the end of {log}:\n" + "".join(log.read_text().splitlines(True)[-15:]))
        stamp.write_text(built_for)
    os.execv(python, [python, __file__, *sys.argv[1:]])


def read_shape(name):
    """Fields of models/shapes/NAME.json, with the size of a head."""
    shape = json.loads((REPOSITORY / "models" / "shapes" / f"{name}.json").read_text())
    return {"head_dim": shape["hidden_size"] // shape["num_attention_heads"], **shape}


def tensors(shape, layers, kind):
    """Tensors of a GGUF file in order: (name, type, (rows, columns) or (length,))."""
    hidden, mlp, vocab, head = (shape[field] for field in ["hidden_size", "intermediate_size", "vocab_size", "head_dim"])
    q, kv = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    yield "token_embd.weight", "Q8_0", (vocab, hidden)
    if not shape["tie_word_embeddings"]:
        yield "output.weight", "Q8_0", (vocab, hidden)
    yield "output_norm.weight", "F32", (hidden,)
    if "rope_scaling" in shape:
        yield "rope_freqs.weight", "F32", (head // 2,)
    for layer in range(layers):
        norms = {"attn_norm": hidden, "ffn_norm": hidden}
        if shape["model_type"] == "qwen3":
            norms |= {"attn_q_norm": head, "attn_k_norm": head}
        for name, length in norms.items():
            yield f"blk.{layer}.{name}.weight", "F32", (length,)
        matrices = {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, q)}
        matrices |= {"ffn_gate": (mlp, hidden), "ffn_up": (mlp, hidden), "ffn_down": (hidden, mlp)}
        for name, sides in matrices.items():
            yield f"blk.{layer}.{name}.weight", kind, sides


def layer_weights(shape):
    """Weights in the matrices of a layer."""
    return sum(math.prod(sides) for name, _, sides in tensors(shape, 1, "Q4_0") if name.startswith("blk.") and len(sides) == 2)


def rope_factors(shape):
    """Divisors of the rope frequencies as Llama 3.1 and 3.2 scale them."""
    import numpy as np

    rope, head = shape["rope_scaling"], shape["head_dim"]
    turns = rope["original_max_position_embeddings"] / (2 * np.pi * shape["rope_theta"] ** (np.arange(0, head, 2) / head))
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def random_tensor(name, kind, sides, shape):
    """Values of a tensor: ones for norms, else 32768 different random blocks again and again; (bytes or f32, GGUF type)."""
    import gguf
    import numpy as np

    quant = gguf.GGMLQuantizationType[kind]
    if name == "rope_freqs.weight":
        return rope_factors(shape), quant
    if kind == "F32":
        return np.ones(sides, np.float32), quant
    weights, size = gguf.GGML_QUANT_SIZES[quant]
    blocks = np.random.default_rng(0).integers(0, 256, (32768, size), np.uint8)
    for offset, scale in SCALES[kind]:
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    rows, columns = sides
    return np.resize(blocks, (rows, columns // weights * size)), quant


def write_gguf(path, shape, layers, kind):
    """Writes a model of random blocks that llama.cpp loads; it needs no tokenizer."""
    import gguf

    part = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(part, shape["model_type"])
    writer.add_block_count(layers)
    writer.add_tokenizer_model("no_vocab")
    fields = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size"}
    fields |= {"head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads", "vocab_size": "vocab_size"}
    fields |= {"key_length": "head_dim", "value_length": "head_dim", "rope_dimension_count": "head_dim"}
    fields |= {"rope_freq_base": "rope_theta", "layer_norm_rms_eps": "rms_norm_eps"}
    for add, field in fields.items():
        getattr(writer, f"add_{add}")(shape[field])
    made = {}  # Layers share the values of equal matrices; the file has them once for each layer.
    for name, type_, sides in tensors(shape, layers, kind):
        key = name if name == "rope_freqs.weight" else (type_, sides)
        if key not in made:
            made[key] = random_tensor(name, type_, sides, shape)
        values, quant = made[key]
        writer.add_tensor(name, values, raw_dtype=None if type_ == "F32" else quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def run_llama(args):
    """The process that times llama.cpp: prints JSON with the field names of `wsrun bench --json`, speeds in tokens a second."""
    import llama_cpp
    import numpy as np

    log = []
    keep_log = llama_cpp.llama_log_callback(lambda level, text, data: log.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(keep_log, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = not args.no_repack
    model = llama_cpp.llama_model_load_from_file(args.file.encode(), params)
    if not model:
        raise Failure(f"llama.cpp does not load {args.file}:\n{''.join(log[-8:])}")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = args.prompt_tokens + args.tokens
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise Failure(f"llama.cpp has no context for {args.file}:\n{''.join(log[-8:])}")

    def forward(tokens):
        """Logits after these tokens, in llama.cpp's own memory."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise Failure(f"llama_decode failed:\n{''.join(log[-8:])}")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (vocab,))

    prompt = np.random.default_rng(0).integers(0, vocab, args.prompt_tokens).tolist()
    for _ in range(2):  # The first run faults the pages in and wakes the threads.
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = time.perf_counter()
        logits = forward(prompt)
        middle = time.perf_counter()
        for _ in range(args.tokens):
            logits = forward([int(logits.argmax())])
        end = time.perf_counter()
    if not np.isfinite(logits).all():
        raise Failure(f"{args.file}: logits are not finite")
    prefill, decode = args.prompt_tokens / (middle - start), args.tokens / (end - middle)
    print(json.dumps({"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}))


def measure(command, prompt_tokens, tokens, threads):
    """One process of either engine; its JSON."""
    sizes = ["--prompt-tokens", prompt_tokens, "--tokens", tokens, "--threads", threads, "--repeat", 1, "--json"]
    command = [str(word) for word in [*command, *sizes]]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy's threads would spin beside those that are timed.
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def alternate(contenders, args, raw):
    """Measures contenders {name: {layers: command}} in turn, repeat times for each thread count. Adds to `raw` one record a measurement. A peer that
    fails, as llama.cpp's AMX kernels do on some virtual machines (illegal instruction), is left out of what follows."""
    for repeat in range(args.repeat):
        for threads in args.threads:
            for name, commands in list(contenders.items()):
                runs = [("decode", layers, SHORT_PROMPT, args.tokens) for layers in commands]
                runs.append(("prefill", args.layers[-1], args.prompt_tokens, 1))
                for what, layers, prompt_tokens, tokens in runs:
                    try:
                        speed = measure(commands[layers], prompt_tokens, tokens, threads)[f"{what}_tokens_per_s"]
                    except Failure as failure:
                        if name == next(iter(contenders)):
                            raise
                        note(f"{name} is left out: {failure}")
                        del contenders[name]
                        break
                    raw.append({"engine": name, "threads": threads, "repeat": repeat, "layers": layers, "what": what, "tokens_per_s": speed})
                    of = f", {layers} layers" if layers else ""
                    note(f"{repeat + 1}/{args.repeat}  {threads} threads  {name}{of}: {what} {speed:.2f} tokens/s")


def speeds(raw, engine, threads, what, layers):
    """Measured tokens a second, one for each repeat."""
    wanted = {"engine": engine, "threads": threads, "what": what, "layers": layers}
    return [record["tokens_per_s"] for record in raw if wanted.items() <= record.items()]


def layer_speeds(raw, engine, threads, counts, weights):
    """10^9 weights of the layers a second, one for each repeat; NaN where noise made the larger model the faster one."""
    few, many = (speeds(raw, engine, threads, "decode", layers) for layers in counts)
    seconds = [1 / m - 1 / f for f, m in zip(few, many)]
    return [(counts[1] - counts[0]) * weights / s / 1e9 if s > 0 else math.nan for s in seconds]


def spread(values):
    """Median (least..most) of the values that are numbers, and how many are not."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return "noise"
    lost = f", {len(values) - len(numbers)} lost in noise" if len(numbers) < len(values) else ""
    middle = statistics.median(numbers)
    digits = 2 if middle < 10 else 1
    return f"{middle:.{digits}f} ({min(numbers):.{digits}f}..{max(numbers):.{digits}f}{lost})"


def table(groups, args, raw, weights):
    """The markdown table. In each group of engines the first is wsrun; its speeds over a row's are taken repeat by repeat."""
    of = f" ({args.layers[-1]} layers)" if args.shape else ""
    columns = {
        "decode tokens/s" + of: lambda *engine: speeds(raw, *engine, "decode", args.layers[-1]),
        f"prefill tokens/s, {args.prompt_tokens} tokens" + of: lambda *engine: speeds(raw, *engine, "prefill", args.layers[-1]),
    }
    ratios = ["wsrun's decode / this", "wsrun's prefill / this"]
    if args.shape:
        columns = {"decode Gweights/s of the layers": lambda *engine: layer_speeds(raw, *engine, args.layers, weights)} | columns
        ratios.insert(0, "wsrun's layers / this")
    rows = [["threads", "engine", *columns, *ratios]]
    rows.append(["---"] * len(rows[0]))
    for threads in args.threads:
        for wsrun, *others in groups:
            rows.append([str(threads), wsrun, *(spread(column(wsrun, threads)) for column in columns.values()), *("" for _ in ratios)])
            for name in others:
                pairs = [(column(wsrun, threads), column(name, threads)) for column in columns.values()]
                cells = [spread(theirs) for _, theirs in pairs]
                rows.append([str(threads), name, *cells, *(spread([w / t for w, t in zip(*pair)]) for pair in pairs)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def compare_shape(args, wsrun, raw):
    """Table for random weights of a shape, rate by rate; the GGUF files of one rate exist at a time."""
    shape, groups, kept = read_shape(args.shape), [], HOME / "gguf"
    kept.mkdir(parents=True, exist_ok=True)
    for rate in args.rates:
        with tempfile.TemporaryDirectory(dir=kept) as temporary:
            command = [wsrun, "bench", "--random-weights", args.shape, "--rate", f"{rate:g}", "--effort", args.effort, "--layers"]
            contenders = {f"wsrun {rate:g} bits, {args.effort}": {layers: [*command, layers] for layers in args.layers}}
            for peer in PEERS[int(rate)]:
                (kind, *options), contenders[peer] = peer.split(), {}
                for layers in args.layers:
                    path = (kept if args.keep else Path(temporary)) / f"{args.shape}-{kind}-{layers}.gguf"
                    if not path.exists():
                        note(f"writing {path}")
                        write_gguf(path, shape, layers, kind)
                    contenders[peer][layers] = llama_command(path, *options)
            alternate(contenders, args, raw)
            groups.append(list(contenders))
    return table(groups, args, raw, layer_weights(shape))


def compare_model(args, wsrun, raw):
    """Table for a GGUF file and a model of wsrun."""
    contenders = {f"wsrun {args.model.rstrip('/').rpartition('/')[2]}": {None: [wsrun, "bench", "--model", args.model]}}
    for options in [[], ["--no-repack"]]:
        contenders[" ".join([args.gguf.name, *options])] = {None: llama_command(args.gguf, *options)}
    alternate(contenders, args, raw)
    return table([list(contenders)], args, raw, None)


def llama_command(path, *options):
    """What runs llama.cpp on a GGUF file."""
    return [sys.executable, __file__, "run-llama", path, *options]


def list_of(kind):
    """Parser of values with commas between them."""
    return lambda text: [kind(word) for word in text.split(",")]


def arguments():
    """The command line; `run-llama FILE`, which this script calls itself with, has that of `wsrun bench`."""
    if sys.argv[1:2] == ["run-llama"]:
        parser = argparse.ArgumentParser()
        for name in ["run_llama", "file"]:
            parser.add_argument(name)
        for name in ["--prompt-tokens", "--tokens", "--threads", "--repeat"]:
            parser.add_argument(name, type=int)
        for name in ["--no-repack", "--json"]:
            parser.add_argument(name, action="store_true")
        return parser.parse_args()
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shape", choices=sorted(path.stem for path in (REPOSITORY / "models" / "shapes").glob("*.json")), help="random weights")
    what.add_argument("--gguf", type=Path, metavar="FILE", help="a real model for llama.cpp, with --model")
    parser.add_argument("--model", metavar="NAME", help="the model for wsrun to compare it with")
    parser.add_argument("--layers", type=list_of(int), default=[4, 12], metavar="N,M", help="two layer counts of the shape (4,12)")
    parser.add_argument("--rates", type=list_of(float), default=[2, 3, 4], metavar="R,...", help="bits a weight of wsrun (2,3,4)")
    parser.add_argument("--effort", default="default", metavar="LEVEL", help="codes of wsrun: fast, light, default or best")
    parser.add_argument("--isa", choices=sorted(ISAS), help="both without what else this CPU has, as on a machine with no more (all that it has)")
    parser.add_argument("--threads", type=list_of(int), default=[1, 2], metavar="N,...", help="thread counts (1,2)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measurements of each kind (5)")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help=f"tokens to decode, after a prompt of {SHORT_PROMPT} (32)")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="tokens of the timed prompt (512)")
    parser.add_argument("--wsrun", type=Path, default=REPOSITORY / "target" / "release" / "wsrun", metavar="PATH", help="the wsrun to time")
    parser.add_argument("--keep", action="store_true", help=f"keep the GGUF files of a shape in {HOME / 'gguf'} and use them again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each measurement here")
    args = parser.parse_args()
    if (args.gguf is None) != (args.model is None):
        parser.error("--gguf and --model go together")
    most = read_shape(args.shape)["num_hidden_layers"] if args.shape else 0
    if args.gguf:
        args.layers = [None]
    elif len(args.layers) != 2 or not 0 < args.layers[0] < args.layers[1] <= most:
        parser.error(f"--layers takes two counts, the smaller one first, up to {most}: --layers 4,12")
    if any(int(rate) not in PEERS for rate in args.rates):
        parser.error("--rates: there are counterparts from 2 up to less than 5 bits")
    for path, remedy in [(args.gguf, ""), (args.wsrun, f": run cargo build --release in {REPOSITORY}, or name another with --wsrun PATH")]:
        if path and not path.is_file():
            parser.error(f"there is no file {path}{remedy}")
    return args


def compare(args):
    """Measures and prints the table."""
    enter_environment(args.isa)
    if args.isa:
        os.environ["WSRUN_ISA"] = args.isa
    import llama_cpp

    info = llama_cpp.llama_print_system_info().decode().strip()
    for flag, feature in {"avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI"}.items():
        wanted = feature in ISAS[args.isa] if args.isa else flag in cpu("flags").split()
        if wanted != (f" {feature} = 1 " in info):
            raise Failure(f"llama.cpp was built {'without' if wanted else 'with'} {feature}: delete {sys.prefix} and try again")
    wsrun, raw = args.wsrun.resolve(), []
    version = subprocess.run([wsrun, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    versions = [version, PACKAGES[0].replace("==", " "), f"Python {platform.python_version()}"]
    machine = {"cpu": cpu("model name") or platform.processor(), "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    if machine["load_before"] > 0.25:
        note(f"warning: other processes run (load {machine['load_before']}): threads of llama.cpp wait for each other, so this slows several most")
    result = (compare_shape if args.shape else compare_model)(args, wsrun, raw)
    print(f"{args.shape or args.model} on {machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} before; {', '.join(versions)}\nllama.cpp: {info}")
    print(f"decode of {args.tokens} tokens after {SHORT_PROMPT}; median (least..most) of {args.repeat}\n\n{result}")
    if args.json:
        settings = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
        args.json.write_text(json.dumps({**machine, "versions": versions, "system_info": info, "settings": settings, "measurements": raw}, indent=1))


def main():
    """Exit status 1 and one message where something is missing."""
    try:
        args = arguments()
        run_llama(args) if "run_llama" in args else compare(args)
    except (Failure, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
