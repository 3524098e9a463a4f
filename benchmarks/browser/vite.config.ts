import { mergeConfig } from "vite";
import web from "../../web/vite.config";

// The page's own settings, for this page; the task's files lie beside it.
export default (environment: { mode: string; command: "build" | "serve" }) =>
  mergeConfig(web(environment), {
    publicDir: process.env.BENCHMARK_DATA,
    build: { outDir: process.env.BENCHMARK_OUT, emptyOutDir: true, rolldownOptions: { input: ["index.html"] } },
  });
