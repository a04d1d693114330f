import react from "@vitejs/plugin-react";
import { defineConfig, loadEnv } from "vite";

export default defineConfig(({ mode }) => ({
  plugins: [react()],
  // So that the collector is on the page's own origin, here too.
  server: { proxy: { "/v1": loadEnv(mode, import.meta.dirname, "").COLLECTOR } },
}));
