import { useState } from "react";
import { Counted } from "./Counted";
import { useTracker } from "./events";
import { go, Link, useRoute } from "./route";

const TEAS = [
  { name: "Sencha", from: "Shizuoka", price: 8.4 },
  { name: "Darjeeling", from: "West Bengal", price: 9.2 },
  { name: "Oolong", from: "Nantou", price: 12 },
];

type Tea = (typeof TEAS)[number];

const price = (value: number) => `€ ${value.toFixed(2)}`;

export function Shop() {
  const route = useRoute();
  const [basket, setBasket] = useState<Tea[]>([]);
  return (
    <>
      <title>{route === "/basket" ? "Basket" : route === "/thanks" ? "Thank you" : "Teas"}</title>
      <header>
        <strong>Leaf &amp; Tally</strong>
        <nav>
          <Link to="/">Teas</Link>
          <Link to="/basket">Basket ({basket.length})</Link>
        </nav>
      </header>
      <main>
        {route === "/basket" ? (
          <Basket teas={basket} empty={() => setBasket([])} />
        ) : route === "/thanks" ? (
          <h1>Thank you!</h1>
        ) : (
          <Teas add={(tea) => setBasket([...basket, tea])} />
        )}
      </main>
      <Counted />
    </>
  );
}

function Teas({ add }: { add: (tea: Tea) => void }) {
  const tracker = useTracker();
  const choose = (tea: Tea) => {
    add(tea);
    tracker.track("tea_added", { tea: tea.name, price: tea.price });
  };
  return (
    <>
      <h1>Teas</h1>
      <ul className="teas">
        {TEAS.map((tea) => (
          <li key={tea.name}>
            <h2>{tea.name}</h2>
            <p>{tea.from}</p>
            {/* The attribute counts the press; the event says what it meant. */}
            <button type="button" data-tallymark-click={`add-${tea.name.toLowerCase()}`} onClick={() => choose(tea)}>
              Add, {price(tea.price)}
            </button>
          </li>
        ))}
      </ul>
    </>
  );
}

function Basket({ teas, empty }: { teas: Tea[]; empty: () => void }) {
  const tracker = useTracker();
  const total = teas.reduce((sum, tea) => sum + tea.price, 0);
  const order = () => {
    tracker.track("order_placed", { teas: teas.length, total });
    empty();
    go("/thanks");
  };
  return (
    <>
      <h1>Basket</h1>
      <ul>
        {teas.map((tea, place) => (
          <li key={place}>
            {tea.name}, {price(tea.price)}
          </li>
        ))}
      </ul>
      <button type="button" data-tallymark-click="order" disabled={!teas.length} onClick={order}>
        Order for {price(total)}
      </button>
    </>
  );
}
