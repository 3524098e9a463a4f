// ONNX Runtime's two builds for browsers, each loaded only where it is used; their files are part of the built page.

import type * as Ort from "onnxruntime-web";
import gpuScript from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url&no-inline";
import gpuBinary from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url&no-inline";
import cpuScript from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url&no-inline";
import cpuBinary from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url&no-inline";

export type Session = Ort.InferenceSession;
export type OrtTensor = Ort.Tensor;
export type Backend = "webgpu" | "wasm";

/** Where graphs run. */
export interface Runtime {
  readonly backend: Backend;
  readonly ort: typeof Ort;
  /** The GPU of `webgpu`; tensors live in its memory. */
  readonly device: GPUDevice | undefined;
  /** Threads of `wasm`. */
  readonly threads: number;
}

/** More threads than these gained nothing on small networks, and a volunteer's machine has other work to do. */
const MAX_THREADS = 4;

/** What a device is asked for, as much as its adapter has: the defaults are too small for large layers. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
] as const;

/** WebAssembly with SIMD; several threads where the page is isolated from other origins, which shared memory needs. */
export async function wasm(threads = defaultThreads()): Promise<Runtime> {
  const ort = await import("onnxruntime-web/wasm");
  ort.env.wasm.wasmPaths = { mjs: absolute(cpuScript), wasm: absolute(cpuBinary) };
  ort.env.wasm.numThreads = crossOriginIsolated ? threads : 1;
  return { backend: "wasm", ort, device: undefined, threads: ort.env.wasm.numThreads };
}

/** WebGPU, or nothing where the browser has no adapter; a software adapter is taken only if `software`. */
export async function webgpu(software: boolean): Promise<Runtime | undefined> {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter || (adapter.info.isFallbackAdapter && !software)) return undefined;
  const requiredLimits = Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]]));
  const device = await adapter.requestDevice({ requiredLimits });
  const ort = await import("onnxruntime-web/webgpu");
  ort.env.wasm.wasmPaths = { mjs: absolute(gpuScript), wasm: absolute(gpuBinary) };
  ort.env.wasm.numThreads = 1; // what runs beside the GPU is little
  return { backend: "webgpu", ort, device, threads: 1 };
}

/** A session for a graph's bytes; `loss` and `correct` are read at once, new state stays where it was computed. */
export function session(runtime: Runtime, graph: Uint8Array, outputs: readonly string[]): Promise<Session> {
  const { ort, device } = runtime;
  if (!device) return ort.InferenceSession.create(graph, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  const places = outputs.map((name) => [name, name.startsWith("new.") ? "gpu-buffer" : "cpu"] as const);
  return ort.InferenceSession.create(graph, {
    executionProviders: [{ name: "webgpu", device, preferredLayout: "NCHW" }],
    logSeverityLevel: 3,
    preferredOutputLocation: Object.fromEntries(places),
  });
}

/** A float32 tensor that lives where the runtime computes. */
export function place(runtime: Runtime, values: Float32Array<ArrayBuffer>, shape: readonly number[]): OrtTensor {
  const { ort, device } = runtime;
  if (!device) return new ort.Tensor("float32", values, shape);
  const gpuBuffer = device.createBuffer({
    size: Math.ceil(Math.max(values.byteLength, 1) / 16) * 16,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
  });
  device.queue.writeBuffer(gpuBuffer, 0, values);
  return ort.Tensor.fromGpuBuffer(gpuBuffer, { dataType: "float32", dims: shape, dispose: () => gpuBuffer.destroy() });
}

function defaultThreads(): number {
  return Math.min(MAX_THREADS, Math.ceil(navigator.hardwareConcurrency / 2));
}

function absolute(url: string): string {
  return new URL(url, import.meta.url).href;
}
