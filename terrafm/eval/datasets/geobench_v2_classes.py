"""Classes of GEO-Bench-2's sets, in the order of their numbers."""

CLASSES: dict[str, tuple[str, ...]] = {
    "benv2": (
        "Urban fabric",
        "Industrial or commercial units",
        "Arable land",
        "Permanent crops",
        "Pastures",
        "Complex cultivation patterns",
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        "Agro-forestry areas",
        "Broad-leaved forest",
        "Coniferous forest",
        "Mixed forest",
        "Natural grassland and sparsely vegetated areas",
        "Moors, heathland and sclerophyllous vegetation",
        "Transitional woodland, shrub",
        "Beaches, dunes, sands",
        "Inland wetlands",
        "Coastal wetlands",
        "Inland waters",
        "Marine waters",
    ),
    "so2sat": (
        "Compact high-rise", "Compact middle-rise", "Compact low-rise", "Open high-rise",
        "Open middle-rise", "Open low-rise", "Lightweight low-rise", "Large low-rise",
        "Sparsely built", "Heavy industry", "Dense Trees", "Scattered trees", "Bush, scrub",
        "Low plants", "Bare rock or paved", "Bare soil or sand", "Water",
    ),
    "treesatai": (
        "Abies", "Acer", "Alnus", "Betula", "Cleared", "Fagus", "Fraxinus", "Larix", "Picea",
        "Pinus", "Populus", "Prunus", "Pseudotsuga", "Quercus", "Tilia",
    ),
    "cloudsen12": ("clear", "thick cloud", "thin cloud", "cloud shadow"),
    "pastis": (
        "background", "meadow", "soft_winter_wheat", "corn", "winter_barley", "winter_rapeseed",
        "spring_barley", "sunflower", "grapevine", "beet", "winter_triticale",
        "winter_durum_wheat", "fruits_vegetables_flowers", "potatoes", "leguminous_fodder",
        "soybeans", "orchard", "mixed_cereal", "sorghum",
    ),
    "kuro_siwo": ("No Water", "Permanent Water", "Flood"),
    "dynamic_earthnet": (
        "Impervious surfaces", "Agriculture", "Forest & other vegetation", "Wetlands", "Soil",
        "Water", "Snow & ice",
    ),
}  # fmt: skip
