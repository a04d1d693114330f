import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { TallymarkProvider } from "tallymark/react";
import { Shop } from "./Shop";
import "./style.css";

const options = {
  endpoint: "/",
  username: import.meta.env.VITE_USERNAME,
  key: import.meta.env.VITE_KEY,
};

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <TallymarkProvider options={options}>
      <Shop />
    </TallymarkProvider>
  </StrictMode>,
);
