"""A few plain sentences in each of many languages, and short pieces of code and markup: what models read besides English prose.

A table of texts, none of which is in what files are compared on.
"""

from __future__ import annotations

__all__ = ["LANGUAGES", "MARKUP"]

TEXTS = """
Der Zug nach Hamburg fährt heute zwanzig Minuten später ab. Am Bahnsteig warten viele Leute, und ein Kind fragt seine Mutter, ob es im
Speisewagen auch Kuchen gibt. „Wenn wir früh genug einsteigen“, sagt sie, „bekommen wir sogar einen Platz am Fenster.“
~
Le marché ouvre à sept heures. Les pêcheurs vendent ce qu'ils ont pris pendant la nuit, et les cuisiniers discutent du prix des
légumes. À midi il ne reste presque rien, sauf quelques citrons et une odeur de thym.
~
La biblioteca cierra los domingos, pero el jardín queda abierto todo el año. ¿Has visto el árbol que plantaron los niños de la escuela?
Dicen que dentro de cinco años dará sombra a toda la plaza.
~
A reunião começou às nove e não acabou antes do almoço. Ninguém sabia quanto dinheiro restava, por isso a diretora pediu que cada um
trouxesse as suas contas até sexta-feira.
~
Il treno si fermò in mezzo alla campagna e nessuno capì perché. Dopo un'ora arrivò un contadino con una cesta di pesche: ne offrì una a
ciascuno e disse che la linea era interrotta da ieri.
~
De fietser stopte bij de brug om de kaart te bekijken. Volgens het bord was het nog twaalf kilometer, maar de wind kwam van voren en het
begon te regenen.
~
Läraren skrev tre frågor på tavlan och gick ut ur rummet. När hon kom tillbaka hade eleverna svarat på alla tre, fast ingen ville säga
vem som hade börjat.
~
Stary zegar na wieży zatrzymał się o czwartej. Burmistrz obiecał, że naprawi go przed świętami, ale zegarmistrz mieszka teraz w innym
mieście i przyjeżdża tylko latem.
~
Babička uložila dopisy do dřevěné krabice a zavřela ji na klíč. Když jsme ji po letech otevřeli, našli jsme v ní také mapu, o které nikdo
nevěděl.
~
Köyün en yaşlı ağacı geçen kış fırtınada devrildi. Çocuklar gövdesinden bir köprü yaptılar; şimdi derenin karşısına geçmek için kimse
uzun yolu yürümüyor.
~
Buổi sáng trời lạnh, nhưng đến trưa thì nắng ấm. Bà tôi ngồi trước nhà, vừa nhặt rau vừa kể chuyện ngày xưa cho các cháu nghe.
~
Kapal itu berangkat sebelum matahari terbit. Para penumpang masih mengantuk, tetapi seorang anak sudah berdiri di buritan dan menghitung
lampu di pelabuhan.
~
Вчера вечером соседи переставляли мебель до полуночи. Утром на лестнице стоял старый шкаф с запиской: «Отдаём даром, ключ внутри».
Кто-то забрал его ещё до завтрака.
~
Улітку річка міліє, і діти переходять її вбрід. Дід каже, що колись тут ходили човни з яблуками, а на тому березі був великий млин.
~
Το καφενείο στην πλατεία άνοιξε ξανά μετά από δέκα χρόνια. Οι παλιοί πελάτες κάθισαν στις ίδιες θέσεις και παρήγγειλαν τον ίδιο καφέ,
σαν να μην είχε περάσει ούτε μια μέρα.
~
הגשם התחיל אחרי הצהריים ולא פסק עד הבוקר. כשיצאנו מהבית ראינו שהשדה הפך לאגם קטן, ושני ברווזים כבר שטו בו.
~
وصلت الرسالة بعد ثلاثة أسابيع. قرأها الأب بصوت عالٍ على المائدة، ثم طواها ووضعها في جيبه، ولم يقل أحد شيئًا حتى برد الشاي.
~
باغبان پیر هر روز صبح زود به درخت‌ها آب می‌داد. وقتی از او پرسیدند چرا این‌قدر زود می‌آید، گفت که پرنده‌ها از او هم زودتر می‌آیند.
~
गाँव के कुएँ का पानी गर्मियों में सूख जाता है। तब लोग दो किलोमीटर दूर की नदी से पानी लाते हैं, और रास्ते में एक-दूसरे को ख़बरें सुनाते हैं।
~
নদীর ধারে একটি ছোট দোকান আছে, যেখানে সন্ধ্যায় সবাই চা খেতে আসে। দোকানদার সবার নাম জানে, কিন্তু নিজের বয়স জানে না।
~
เมื่อวานฝนตกหนักจนถนนหน้าบ้านกลายเป็นคลอง เด็กๆ เอาเรือกระดาษออกมาลอยเล่น ส่วนพ่อกับแม่ช่วยกันยกของขึ้นชั้นสอง
~
老师把窗户打开，让新鲜的空气进来。下课以后，几个学生留在教室里，一边擦黑板，一边讨论周末去哪里爬山。他们最后决定坐早上六点的火车。
~
駅前の小さな本屋は、来月で閉店するそうだ。子どものころ、ここで初めて自分のお金で漫画を買った。店主はまだそのことを覚えていて、笑いながら話してくれた。
~
아침 시장에는 사람이 많았다. 할머니는 배추 세 포기와 마늘을 사고, 남은 돈으로 손자에게 줄 떡을 샀다. 버스는 십 분 늦게 왔다.
"""
LANGUAGES: tuple[str, ...] = tuple(text.strip() for text in TEXTS.split("\n~\n"))

PIECES = r"""
static int read_line(FILE *in, char *buffer, size_t size)
{
    size_t used = 0;
    int c;

    while ((c = fgetc(in)) != EOF && c != '\n') {
        if (used + 1 < size)
            buffer[used++] = (char)c;
    }
    buffer[used] = '\0';
    return c == EOF && used == 0 ? -1 : (int)used;
}
~
export async function loadPrices(url, { retries = 2 } = {}) {
  for (let attempt = 0; ; attempt++) {
    const response = await fetch(url, { headers: { Accept: "application/json" } });
    if (response.ok) return (await response.json()).map(({ id, price }) => [id, Number(price)]);
    if (attempt >= retries) throw new Error(`HTTP ${response.status}`);
  }
}
~
SELECT c.name, COUNT(*) AS orders, SUM(o.total) AS spent
FROM customers AS c JOIN orders AS o ON o.customer_id = c.id
WHERE o.placed_at >= '2023-01-01' AND o.state <> 'cancelled'
GROUP BY c.name HAVING SUM(o.total) > 1000
ORDER BY spent DESC LIMIT 20;
~
{"order": 1187, "customer": {"name": "R. Okafor", "city": "Leeds"}, "items": [{"sku": "A-20", "count": 3, "price": 4.75},
{"sku": "C-07", "count": 1, "price": 129.0}], "paid": true, "notes": null}
~
<table class="results">
  <tr><th>Name</th><th>Points</th></tr>
  <tr><td>Lina &amp; Tom</td><td>42</td></tr>
</table>
~
fn largest<'a>(words: &'a [String]) -> Option<&'a str> {
    words.iter().map(|word| word.as_str()).max_by_key(|word| word.len())
}
~
## Changes

- **Faster start**: the index is read when it is first needed (see `open_index`).
- Fixed: a path with spaces was cut at the first of them.

1. Stop the service. 2. Copy `config.yml`. 3. Start it again, and look at <http://localhost:8080/health>.
~
for file in "$HOME"/logs/*.log; do
  [ -s "$file" ] || continue
  printf '%s: %d errors\n' "${file##*/}" "$(grep -c 'ERROR' "$file")"
done | sort -t: -k2 -rn | head -n 5
~
User: My train leaves at 14:25 and the way to the station takes 35 minutes. When do I have to go?
Assistant: At 13:50 at the latest. With ten minutes to spare, leave at 13:40.
User: Thanks! And how much is 15% of 84?
Assistant: 15% of 84 is 12.6, because 10% is 8.4 and 5% is 4.2.
~
The area of the triangle is ½·b·h = 0.5 × 6 cm × 4 cm = 12 cm². Since a² + b² = c², the third side is √(36 + 16) ≈ 7.21 cm; hence
the perimeter is 6 + 4 + 7.21 = 17.21 cm, or about 6.8 inches.
~
Great day at the lake 🌞🚣‍♀️! Water was 19 °C – still a bit cold 😅, but the ice cream (€2.50) made up for it 🍦👍 #summer
"""
MARKUP: tuple[str, ...] = tuple(text.strip() for text in PIECES.split("\n~\n"))
